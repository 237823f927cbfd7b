"""What a graft adds to a backbone, apart from it: loop parameters, encoders, decoders.

DIR/loops.safetensors   our names, "/"-joined, in the dtypes given
DIR/loops.json          rounds, gate, decoder, layout, ...: what is needed to run them
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from roam_jax.cogvideox.mapped import create_tensors, open_tensors

LOOPS_FILE, NOTES_FILE = "loops.safetensors", "loops.json"
FORMAT = "roam_jax loops, version 1"


@dataclasses.dataclass(frozen=True)
class Loops:
    """The two files.

    Args:
        notes: JSON object; "rounds", "gate", "gate_scope" and "decoder" always, and whatever else
            is known of the graft.
        parameters: "/"-joined name -> array.
    """

    notes: dict[str, Any]
    parameters: Mapping[str, np.ndarray]


def write_loops(folder: pathlib.Path, loops: Loops) -> None:
    """Writes both files into a folder that is there."""
    arrays = {name: np.asarray(value) for name, value in loops.parameters.items()}
    specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    with create_tensors(folder / LOOPS_FILE, specs) as tensors:
        for name, array in arrays.items():
            tensors[name][...] = array
    notes = {"format": FORMAT, **loops.notes}
    (folder / NOTES_FILE).write_text(json.dumps(notes, indent=1) + "\n")


def read_loops(folder: pathlib.Path) -> Loops:
    """Reads what `write_loops` wrote; parameters are memory-mapped.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another version.
    """
    for name in (LOOPS_FILE, NOTES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file; `python -m convert export --as base+loops` or "
                "`import --ce` writes it"
            )
    path = folder / NOTES_FILE
    try:
        notes = json.loads(path.read_text())
        found = notes.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected a JSON object with format = {FORMAT!r}") from error
    if found != FORMAT:
        raise ValueError(f"{path}: format = {found!r}, expected {FORMAT!r}")
    regions = notes.get("regions", [])
    if not isinstance(regions, list) or not all(isinstance(name, str) for name in regions):
        raise ValueError(f"{path}: regions = {regions!r}, expected a list of names")
    return Loops(notes, open_tensors(folder / LOOPS_FILE))
