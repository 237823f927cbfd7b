"""From a diffusers checkpoint to the converted folder: stacked, Flax layouts, dtypes kept.

    DST/transformer/{config.json, weights.safetensors, manifest.json}
    DST/vae/{config.json, weights.safetensors, manifest.json}

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
from typing import Any

import numpy as np
from absl import logging

from roam_jax.cogvideox.components import COMPONENTS, CONFIG_FILE, Component
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.mapped import create_tensors, open_tensors
from roam_jax.cogvideox.names import TensorName, account
from roam_jax.cogvideox.vae_config import VAEConfig

WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"
_DIGEST_BYTES = 16
# Rows of a source tensor that are transposed at once.
_TILE = 128
_PIPELINE_FILE = "model_index.json"
# Pipelines that run CogVideoX-2B's weights.
_PIPELINES = ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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
    """Converts the transformer, the VAE or both of a diffusers directory.

    Args:
        src: holds `transformer/` or `vae/` or both, with safetensors in one file or in shards.
        dst: the new folder; appears whole or not at all.

    Returns:
        Component -> what was written.

    Raises:
        FileNotFoundError: `src` holds neither network, or one without config or weights.
        FileExistsError: `dst` exists.
        ValueError: another model, pickled or truncated weights, tensors that do not fit.
    """
    src, dst = pathlib.Path(src), pathlib.Path(dst)
    present = find_networks(src)
    with new_directory(dst) as folder:
        return {
            name: _import_component(src / name, folder / name, COMPONENTS[name]) for name in present
        }


def find_networks(src: pathlib.Path) -> tuple[str, ...]:
    """Which of our networks a diffusers directory holds.

    Raises:
        FileNotFoundError: neither, or no directory of diffusers at all.
        ValueError: its model_index.json is of another model.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"{src}: no such folder")
    index = src / _PIPELINE_FILE
    if index.is_file():
        pipeline = _class_name(index)
        if pipeline not in _PIPELINES:
            raise ValueError(
                f"{index}: this is a {pipeline}, expected {' or '.join(_PIPELINES)}: only "
                "CogVideoX-2B is ported"
            )
    present = tuple(name for name in COMPONENTS if (src / name).is_dir())
    if not present:
        expected = f"expected a folder {' or '.join(COMPONENTS)} in it"
        if (src / CONFIG_FILE).is_file():
            network = _class_name(src / CONFIG_FILE)
            raise FileNotFoundError(f"{src}: this is one network, a {network}; {expected}")
        found = ", ".join(sorted(path.name for path in src.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{src}: {expected}, found {found}")
    return present


def _class_name(path: pathlib.Path) -> str:
    """The class that a JSON file of diffusers is about."""
    try:
        return str(json.loads(path.read_text())["_class_name"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected diffusers' JSON with a _class_name") from error


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


def open_network(
    folder: pathlib.Path, component: Component
) -> tuple[TransformerConfig | VAEConfig, dict[str, np.ndarray]]:
    """Config of one diffusers network, and views on its tensors, every one accounted for.

    Raises:
        FileNotFoundError, ValueError: as `import_diffusers`.
    """
    config = component.read_config(folder)
    tensors = open_checkpoint(folder)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    account(component.names(config), shapes, where=str(folder))
    return config, tensors


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
                _copy(name.to_ours(tensors[key]), place)
            hasher.submit(digest.update, parameter.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Fills the target in tiles that stay in the cache, which a whole transposed tensor does not.

    Two to four times faster than one assignment.
    """
    if source.ndim < 2:
        target[...] = source
        return
    for start in range(0, source.shape[-1], _TILE):
        tile = np.s_[..., start : start + _TILE]
        target[tile] = source[tile]


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


def open_checkpoint(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Views on all tensors of one diffusers network, whatever files they are in.

    Raises:
        FileNotFoundError: no weights, or a shard is missing.
        ValueError: pickled or truncated weights, several candidates, or an index that disagrees
            with its shards.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _open_shards(indices[0])
    if not indices and len(files) == 1:
        return open_tensors(files[0])
    if indices or files:
        found = ", ".join(path.name for path in indices or files)
        raise ValueError(f"{folder}: {found}: expected one weights file, or one index of shards")
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
    if pickles:
        raise ValueError(
            f"{folder}: {', '.join(pickles)}: pickles can run code and are not read; expected "
            "*.safetensors (diffusers writes them with save_pretrained)"
        )
    raise FileNotFoundError(f"{folder}: no *.safetensors file")


def _open_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map of key to file") from error
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        if pathlib.PurePath(shard).name != shard:
            raise ValueError(f"{index}: {shard!r}: expected the name of a file beside the index")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index}: its shard {shard} is not there")
        opened = open_tensors(index.parent / shard)
        listed = [key for key, file in weight_map.items() if file == shard]
        _check_shard(opened, listed, where=f"{index}: {shard}")
        tensors |= opened
    return tensors


def _check_shard(opened: Mapping[str, Any], listed: Sequence[str], *, where: str) -> None:
    if opened.keys() != set(listed):
        lacks = sorted(set(listed) - opened.keys())
        extra = sorted(opened.keys() - set(listed))
        raise ValueError(f"{where}: index and shard disagree: lacks {lacks}, not listed {extra}")
