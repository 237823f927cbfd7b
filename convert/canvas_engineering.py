"""Loop parameters and action head to and from canvas-engineering's checkpoints.

Its `save_loop_checkpoint` keeps, of a grafted transformer, what trains inside the blocks and the
action head:

    {"loop_blocks": {"block_0": {"loop_emb": (R, D), "loop_emb_enc": (R, D), "loop_gate": (R, 1),
                                 "original.KEY": the block's own weights, where they train}},
     "action_head": {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}}

What trained outside of the blocks is in no such file. Source: canvas-engineering 0.5.0,
`checkpoint.py`, `cogvideox.py`, `action_heads.py`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from convert.ce_shapes import check_shapes
from convert.loops import Loops
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import LAYER, transformer_names

_LOOP, _DECODER = "blocks/loop", "graft/decoder"
_BLOCKS, _HEAD = "loop_blocks", "action_head"
# What canvas-engineering's graft always is; key of the notes -> value.
_FIXED = {
    "gate": "sigmoid",
    "gate_scope": "round",
    "decoder": "pooled",
    "sharpening": "none",
    "geometry": "none",
    "clean_timestep": "global",
    "visual_attention": "dense",
}
# The smallest hidden width of its head, which is else half the latent channels.
_HIDDEN = 8
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# What torch.load raises of files that are none of its own.
_UNREADABLE = (
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor goes.

    Args:
        target: our name; of a tensor in a block, of the stack over all blocks.
        axes: how many it has there.
        to_ours, to_theirs: between the two layouts.
    """

    target: str
    axes: int
    to_ours: Callable[[np.ndarray], np.ndarray] = np.asarray
    to_theirs: Callable[[np.ndarray], np.ndarray] = np.asarray


def _own_weights() -> dict[str, _Place]:
    """The block's own tensors, by their name within the block."""
    found = {}
    for name in transformer_names(TransformerConfig()):
        if name.stacked:
            turn = np.transpose if name.layout == "linear" else np.asarray
            key = name.source.removeprefix(f"transformer_blocks.{LAYER}.")
            found[f"original.{key}"] = _Place(name.target, len(name.shape), turn, turn)
    return found


_LOOP_ROWS = {
    "loop_emb": _Place(f"{_LOOP}/video", 2),
    "loop_emb_enc": _Place(f"{_LOOP}/text", 2),
    "loop_gate": _Place(f"{_LOOP}/gate", 2, lambda x: x[:, 0], lambda x: x[:, None]),
}
_OWN = _own_weights()
_IN_BLOCK = _LOOP_ROWS | _OWN
_IN_HEAD = {
    "net.0.weight": _Place(f"{_DECODER}/hidden/kernel", 2, np.transpose, np.transpose),
    "net.0.bias": _Place(f"{_DECODER}/hidden/bias", 1),
    "net.2.weight": _Place(f"{_DECODER}/out/kernel", 2, np.transpose, np.transpose),
    "net.2.bias": _Place(f"{_DECODER}/out/bias", 1),
}
_TO_OURS = {place.target: place.to_ours for place in (*_IN_BLOCK.values(), *_IN_HEAD.values())}
_NEEDED = frozenset(place.target for place in (*_LOOP_ROWS.values(), *_IN_HEAD.values()))


def write_checkpoint(path: pathlib.Path, loops: Loops, *, where: str) -> None:
    """Writes a .pt that `canvas_engineering.checkpoint.load_loop_checkpoint` reads.

    Args:
        path: the new file.
        loops: a graft with sigmoid gates and the pooled decoder.
        where: it comes from, for messages.

    Raises:
        ValueError: canvas-engineering cannot express it.
    """
    _check_expressible(loops, where=where)
    parameters = loops.parameters
    rows = {key: p for key, p in _IN_BLOCK.items() if p.target in parameters}
    blocks = {
        f"block_{layer}": {
            key: _tensor(place.to_theirs(parameters[place.target][layer]))
            for key, place in rows.items()
        }
        for layer in range(len(parameters[f"{_LOOP}/gate"]))
    }
    head = {key: _tensor(p.to_theirs(parameters[p.target])) for key, p in _IN_HEAD.items()}
    torch.save({_BLOCKS: blocks, _HEAD: head}, path)


def _check_expressible(loops: Loops, *, where: str) -> None:
    """Refuses, by name, whatever canvas-engineering has no form for."""
    notes, found = loops.notes, loops.parameters
    lacking = [
        f"{key} = {notes[key]!r} (it has {value!r} alone)"
        for key, value in _FIXED.items()
        if notes.get(key, value) != value
    ]
    extra = [name for name in notes.get("regions", ()) if name not in ("text", "visual")]
    if extra:
        lacking.append(f"the regions {', '.join(extra)}")
    others = sorted(found.keys() - _NEEDED - {place.target for place in _OWN.values()})
    if others and not lacking:
        lacking.append(f"the parameters {', '.join(others)}")
    if lacking:
        raise ValueError(f"{where}: canvas-engineering has no place for {'; '.join(lacking)}")
    _check_whole(found, where=where)
    channels, hidden = found[f"{_DECODER}/hidden/kernel"].shape
    if hidden != max(channels // 2, _HIDDEN):
        raise ValueError(
            f"{where}: the action head has {hidden} hidden numbers, canvas-engineering's has "
            f"{max(channels // 2, _HIDDEN)} for {channels} channels"
        )


def _check_whole(found: Collection[str], *, where: str) -> None:
    if missing := sorted(_NEEDED.difference(found)):
        raise ValueError(f"{where}: no parameters {', '.join(missing)}, expected all of a graft")


def read_checkpoint(path: pathlib.Path) -> Loops:
    """Reads canvas-engineering's .pt; a pickle in it cannot run code.

    The own weights of blocks, where they trained, get the backbone's names: they replace its.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of canvas-engineering's, holds what has no name here, or tensors
            whose shapes do not belong together.
    """
    stacks: dict[str, dict[int | None, np.ndarray]] = {}
    found = dict(read_tensors(path))
    for key, tensor in found.items():
        block, place = _find(key)
        if place is None or tensor.ndim != place.axes:
            raise ValueError(
                f"{path}: {key} of shape {tuple(tensor.shape)} has no place in a graft of "
                "CogVideoX-2B"
            )
        stacks.setdefault(place.target, {})[block] = tensor
    _check_whole(stacks, where=str(path))
    check_shapes(found, where=path)
    blocks = {block for layers in stacks.values() for block in layers if block is not None}
    parameters = {}
    for name, layers in stacks.items():
        expected = [None] if name.startswith(_DECODER) else [*range(len(blocks))]
        if sorted(layers, key=str) != sorted(expected, key=str):
            raise ValueError(f"{path}: {name} of blocks {[*layers]}, expected {expected}")
        if len({layer.dtype for layer in layers.values()}) > 1:
            raise ValueError(f"{path}: {name} has another dtype in one block than in another")
        arrays = [_TO_OURS[name](layers[block]) for block in expected]
        parameters[name] = arrays[0] if expected == [None] else np.stack(arrays)
    loops = Loops({key: _FIXED[key] for key in ("gate", "gate_scope", "decoder")}, parameters)
    _check_expressible(loops, where=str(path))
    sizes = {
        "source": "canvas-engineering",
        "rounds": int(parameters[f"{_LOOP}/gate"].shape[1]),
        "action_dim": int(parameters[f"{_DECODER}/out/bias"].shape[0]),
    }
    return Loops({**sizes, **loops.notes}, parameters)


def read_tensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of the file by dotted name, such as "loop_blocks.block_0.loop_emb".

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; a tensor is not float16, bfloat16 or
            float32, or not dense.
    """
    expected = "expected what canvas-engineering's save_loop_checkpoint writes"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise ValueError(f"{path}: no file of plain tensors ({reason}); {expected}") from error
    if not isinstance(state, dict) or state.keys() != {_BLOCKS, _HEAD}:
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: holds {found}, {expected}: {_BLOCKS} and {_HEAD}")
    yield from _flat(state, "", where=path)


def our_name(key: str) -> str | None:
    """Where a tensor of `read_tensors` goes, "blocks/loop/video[3]"; None: it has no place."""
    block, place = _find(key)
    if place is None:
        return None
    return place.target if block is None else f"{place.target}[{block}]"


def _find(key: str) -> tuple[int | None, _Place | None]:
    """The block that a tensor is of, if any, and its place."""
    if match := re.fullmatch(rf"{_BLOCKS}\.block_(\d+)\.(.+)", key):
        return int(match[1]), _IN_BLOCK.get(match[2])
    return None, _IN_HEAD.get(key.removeprefix(f"{_HEAD}."))


def _flat(
    values: Mapping[str, Any], prefix: str, *, where: Any
) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.", where=where)
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", _array(value, where=f"{where}: {prefix}{key}")
        else:
            raise ValueError(f"{where}: {prefix}{key} is a {type(value).__name__}, no tensor")


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(array, np.float32))


def _array(tensor: torch.Tensor, *, where: str) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        dtypes = ", ".join(map(str, _DTYPES))
        raise ValueError(f"{where} is {kind}, expected a dense tensor of {dtypes}")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
