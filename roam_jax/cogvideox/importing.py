"""From a diffusers checkpoint to the converted folder: stacked, Flax layouts, dtypes kept.

    DST/{transformer, vae, text_encoder}/{config.json, weights.safetensors, manifest.json}
    DST/tokenizer/ and DST/scheduler/scheduler_config.json as they were

Both sides are memory-mapped and one tensor is copied at a time, so a 2B checkpoint needs next to
no memory. Values are never changed, only moved.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from roam_jax.cogvideox.components import (
    COMPONENTS,
    SCHEDULER,
    SCHEDULER_FILE,
    TOKENIZER,
    Component,
)
from roam_jax.cogvideox.mapped import copy_tiled, create_tensors
from roam_jax.cogvideox.names import TensorName
from roam_jax.cogvideox.source import PIPELINE_FILE, find_networks, open_network

WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a converted network is, written beside its weights.

    Args:
        fingerprint: hash of the weights file.
        bytes: size of the weights file.
        tensors: tensors of the diffusers checkpoint.
        parameters: numbers in them.
        dtypes: dtype -> how many of the tensors have it.
    """

    fingerprint: str
    bytes: int
    tensors: int
    parameters: int
    dtypes: dict[str, int]


def import_diffusers(
    src: str | os.PathLike[str], dst: str | os.PathLike[str]
) -> dict[str, Manifest]:
    """Converts the networks of a diffusers directory, and takes tokenizer and scheduler along.

    Args:
        src: holds `transformer/`, `vae/`, `text_encoder/` or several, with safetensors in one file
            or in shards; `tokenizer/` and `scheduler/` are copied where they are there.
        dst: the new folder; appears whole or not at all.

    Returns:
        Network -> what was written.

    Raises:
        FileNotFoundError: `src` holds no network, or one without config or weights.
        FileExistsError: `dst` exists.
        ValueError: another model, pickled or truncated weights, tensors that do not fit.
    """
    src, dst = pathlib.Path(src), pathlib.Path(dst)
    present = find_networks(src)
    for name in present:
        if (src / name / MANIFEST_FILE).exists():
            raise ValueError(
                f"{src}: this is converted already ({name}/{MANIFEST_FILE} is there), expected a "
                "directory in diffusers' format; `python -m convert export --src` gives one"
            )
    with new_directory(dst) as folder:
        copy_companions(src, folder)
        return {
            name: _import_component(src / name, folder / name, COMPONENTS[name]) for name in present
        }


def companion_files(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Files of tokenizer and scheduler, relative to a diffusers directory or a converted folder.

    Raises:
        FileNotFoundError: a folder `scheduler` without its file.
    """
    found = [p for p in sorted((folder / TOKENIZER).rglob("*")) if p.is_file()]
    if (folder / SCHEDULER).is_dir():
        scheduler = folder / SCHEDULER / SCHEDULER_FILE
        if not scheduler.is_file():
            raise FileNotFoundError(f"{scheduler}: no such file, the noise schedule of the model")
        found.append(scheduler)
    return tuple(path.relative_to(folder) for path in found)


def not_imported(src: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of what lies in a diffusers directory and `import_diffusers` does not take."""
    taken = {*COMPONENTS, TOKENIZER, SCHEDULER, PIPELINE_FILE}
    return tuple(sorted(p.name for p in pathlib.Path(src).iterdir() if p.name not in taken))


def copy_companions(src: pathlib.Path, dst: pathlib.Path) -> None:
    """Copies them verbatim, whichever are there.

    Raises:
        FileNotFoundError: as `companion_files`.
    """
    for path in companion_files(src):
        (dst / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(src / path, dst / path)


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill beside `path`, renamed to it at the end and removed on an error.

    Raises:
        FileExistsError: `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: remove it, or choose another folder")
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _import_component(src: pathlib.Path, dst: pathlib.Path, component: Component) -> Manifest:
    config, tensors = open_network(src, component)
    names = component.names(config)

    dst.mkdir()
    component.write_config(dst, config)
    fingerprint = _write(dst / WEIGHTS_FILE, names, tensors)
    manifest = _describe(dst / WEIGHTS_FILE, fingerprint, tensors)
    (dst / MANIFEST_FILE).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
    logging.info("%s: %d tensors, %d bytes", src, manifest.tensors, manifest.bytes)
    return manifest


def _write(
    path: pathlib.Path, names: Sequence[TensorName], tensors: Mapping[str, np.ndarray]
) -> str:
    """Writes our parameters; returns `hash_file(path)`, found by a second thread meanwhile."""
    named = {name.target: name for name in names}
    specs = {target: (name.target_shape, _dtype(name, tensors)) for target, name in named.items()}
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as hasher,
        create_tensors(path, specs) as parameters,
    ):
        header = path.stat().st_size - sum(parameter.nbytes for parameter in parameters.values())
        with path.open("rb") as file:
            digest.update(file.read(header))
        # The file holds the parameters in this order, without gaps.
        for target, parameter in parameters.items():
            name = named[target]
            for layer, key in enumerate(name.keys):
                place = parameter[(layer, ...) if name.stacked else ...]
                copy_tiled(name.to_ours(tensors[key]), place)
            hasher.submit(digest.update, parameter.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _dtype(name: TensorName, tensors: Mapping[str, np.ndarray]) -> np.dtype:
    dtypes = {tensors[key].dtype for key in name.keys}
    if len(dtypes) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{name.source}: layers have dtypes {found}, expected one for a stack")
    return dtypes.pop()


def _describe(
    weights: pathlib.Path, fingerprint: str, tensors: Mapping[str, np.ndarray]
) -> Manifest:
    dtypes = [str(tensor.dtype) for tensor in tensors.values()]
    return Manifest(
        fingerprint=fingerprint,
        bytes=weights.stat().st_size,
        tensors=len(tensors),
        parameters=sum(tensor.size for tensor in tensors.values()),
        dtypes={dtype: dtypes.count(dtype) for dtype in sorted(set(dtypes))},
    )


def hash_file(path: pathlib.Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)
        ).hexdigest()
