"""What a diffusers directory holds: which of our networks, and their tensors in any files.

Pickles are never read. A file, an index and its shards must agree.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from roam_jax.cogvideox.components import COMPONENTS, CONFIG_FILE, Component, NetworkConfig
from roam_jax.cogvideox.mapped import TensorHeader, open_tensors, read_headers
from roam_jax.cogvideox.names import account

PIPELINE_FILE = "model_index.json"
PIPELINE = "CogVideoXPipeline"
# Pipelines that run CogVideoX-2B's weights.
_PIPELINES = (PIPELINE, "CogVideoXVideoToVideoPipeline")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Bytes that two copies of a tensor are compared by at once.
_COMPARED = 1 << 24


def find_networks(src: pathlib.Path) -> tuple[str, ...]:
    """Which of our networks a diffusers directory holds.

    Raises:
        FileNotFoundError: none, or no directory of diffusers at all.
        ValueError: its model_index.json is of another model.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"{src}: no such folder")
    index = src / PIPELINE_FILE
    if index.is_file():
        pipeline = class_name(index)
        if pipeline not in _PIPELINES:
            raise ValueError(
                f"{index}: this is a {pipeline}, expected {' or '.join(_PIPELINES)}: only "
                "CogVideoX-2B is ported"
            )
    present = tuple(name for name in COMPONENTS if (src / name).is_dir())
    if not present:
        *others, last = COMPONENTS
        expected = f"expected a folder {', '.join(others)} or {last} in it"
        if (src / CONFIG_FILE).is_file():
            network = class_name(src / CONFIG_FILE)
            raise FileNotFoundError(f"{src}: this is one network, a {network}; {expected}")
        found = ", ".join(sorted(path.name for path in src.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{src}: {expected}, found {found}")
    return present


def class_name(path: pathlib.Path) -> str:
    """The class that a JSON file of diffusers is about.

    Raises:
        ValueError: it does not parse, or does not say.
    """
    try:
        name = json.loads(path.read_text())["_class_name"]
        if not isinstance(name, str):
            raise TypeError(name)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected diffusers' JSON with a _class_name") from error
    return name


def open_network(
    folder: pathlib.Path, component: Component
) -> tuple[NetworkConfig, dict[str, np.ndarray]]:
    """Config of one diffusers network, and views on its tensors, every one accounted for.

    Tied copies are left out, once they are found equal.

    Raises:
        FileNotFoundError, ValueError: as `import_diffusers`.
    """
    config = component.read_config(folder)
    tensors = _without_copies(open_checkpoint(folder), component.aliases, where=str(folder))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    account(component.names(config), shapes, where=str(folder))
    return config, tensors


def _without_copies(
    tensors: dict[str, np.ndarray], aliases: Mapping[str, str], *, where: str
) -> dict[str, np.ndarray]:
    """The tensors without tied copies; one that stands alone takes the original's name.

    Raises:
        ValueError: a copy that has other values than the original.
    """
    found = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    for key in tensors.keys() & aliases.keys():
        original = found.setdefault(aliases[key], tensors[key])
        if not _same_bytes(tensors[key], original):
            raise ValueError(
                f"{where}: {key} differs from {aliases[key]}, expected a copy of it: in this model "
                "the two are one tensor"
            )
    return found


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    one, other = (x.reshape(-1).view(np.uint8) for x in (one, other))
    starts = range(0, len(one), _COMPARED)
    return all(np.array_equal(one[i : i + _COMPARED], other[i : i + _COMPARED]) for i in starts)


def open_checkpoint(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Views on all tensors of one diffusers network, whatever files they are in.

    Raises:
        FileNotFoundError: no weights, or a shard is missing.
        ValueError: pickled or truncated weights, several candidates, or an index that disagrees
            with its shards.
    """
    return _read(folder, open_tensors)


def checkpoint_headers(folder: pathlib.Path) -> dict[str, TensorHeader]:
    """What `open_checkpoint` would open, and of what dtype ever; reads no tensor.

    Raises:
        FileNotFoundError, ValueError: as `open_checkpoint`.
    """
    return _read(folder, read_headers)


def _read(folder: pathlib.Path, read_file: Callable[[pathlib.Path], dict[str, Any]]) -> dict:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _read_shards(indices[0], read_file)
    if not indices and len(files) == 1:
        return read_file(files[0])
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


def _read_shards(index: pathlib.Path, read_file: Callable[[pathlib.Path], dict[str, Any]]) -> dict:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: expected JSON with a weight_map of key to file") from error
    tensors: dict[str, Any] = {}
    for shard in shards:
        if pathlib.PurePath(shard).name != shard:
            raise ValueError(f"{index}: {shard!r}: expected the name of a file beside the index")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index}: its shard {shard} is not there")
        opened = read_file(index.parent / shard)
        listed = [key for key, file in weight_map.items() if file == shard]
        _check_shard(opened, listed, where=f"{index}: {shard}")
        tensors |= opened
    return tensors


def _check_shard(opened: Mapping[str, Any], listed: Sequence[str], *, where: str) -> None:
    if opened.keys() != set(listed):
        lacks = sorted(set(listed) - opened.keys())
        extra = sorted(opened.keys() - set(listed))
        raise ValueError(f"{where}: index and shard disagree: lacks {lacks}, not listed {extra}")
