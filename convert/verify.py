"""A conversion against diffusers: stored tensors, then every module, then the whole networks.

Each of our modules is given the very input that diffusers' module had, so that an error in the
table is that module's alone; the whole networks show how errors add up. Both sides compute in
float32 on the CPU from the same stored values.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from convert import reference
from convert.modules import PAIRS
from roam_jax.cogvideox.components import COMPONENTS
from roam_jax.cogvideox.importing import companion_files, import_diffusers
from roam_jax.cogvideox.load import open_parameters
from roam_jax.cogvideox.source import find_networks, open_network

# Relative L2 error that a module and its network may have: four times the largest that random
# weights of the published sizes give, far below what a wrong tensor or formula does.
BOUNDS = {"transformer": 1e-5, "vae": 3e-5, "text_encoder": 1e-5}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        group: rows of a group share a line of the table.
        module: what was compared, under diffusers' name.
        shape: of the output, as text.
        relative: relative L2 error.
        largest: largest absolute error.
        bound: what `relative` may be.
    """

    group: str
    module: str
    shape: str
    relative: float
    largest: float
    bound: float

    @property
    def ok(self) -> bool:
        """Within the bound; never with a NaN."""
        return self.relative <= self.bound


def verify(
    src: pathlib.Path, dst: pathlib.Path | None = None, *, bound: float | None = None
) -> list[Row]:
    """Compares every network of a diffusers directory, and what is copied, with its conversion.

    Args:
        src: the diffusers directory.
        dst: its conversion; None = it is converted in a temporary folder.
        bound: for every module; None = `BOUNDS`. Stored tensors must be equal in any case.

    Raises:
        FileNotFoundError, ValueError: `src` is of another model or damaged, or `dst` is no
            conversion, or one of another model.
    """
    networks = find_networks(src)
    with tempfile.TemporaryDirectory() as temporary:
        if dst is None:
            dst = pathlib.Path(temporary) / "converted"
            import_diffusers(src, dst)
        rows = []
        for name in networks:
            # Only the CPU computes in float32 without being asked twice.
            with jax.default_device(jax.devices("cpu")[0]):
                rows += _stored(src, dst, name)
                limit = BOUNDS[name] if bound is None else bound
                rows += [_row(name, *pair, bound=limit) for pair in PAIRS[name](src / name, dst)]
        return [*rows, *_copies(src, dst)]


def table(rows: Iterable[Row]) -> str:
    """The rows as text: of each group the worst, and all that are beyond their bounds."""
    lines = [("module", "shape", "relative L2", "max abs", "bound", "ok")]
    for name, group in itertools.groupby(rows, key=lambda row: row.group):
        group = list(group)
        # NaN is worse than any number.
        worst = max(group, key=lambda row: (np.isnan(row.relative), row.relative))
        for row in [row for row in group if row is worst or not row.ok]:
            label = row.module
            if row is worst and len(group) > 1:
                label = f"{label} (worst of {len(group)})" if row.largest else f"{name} (equal)"
            errors = [f"{x:.1e}" if x else "0" for x in (row.relative, row.largest, row.bound)]
            lines.append((label, row.shape, *errors, "yes" if row.ok else "NO"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(form.format(*line) for line in lines)


def _row(network: str, module: str, ours: np.ndarray, theirs: np.ndarray, *, bound: float) -> Row:
    name = f"{network}.{module}"
    # Blocks share a line, and so do the layers of one resolution.
    group = re.sub(r"(\.(resnets|downsamplers|upsamplers))?\.\d+$", "", name)
    return Row(group, name, "x".join(map(str, theirs.shape)), *_errors(ours, theirs), bound)


def _errors(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Relative L2 and largest absolute error."""
    theirs = np.asarray(theirs, np.float64)
    difference = np.asarray(ours, np.float64) - theirs
    scale = max(np.linalg.norm(theirs), np.finfo(np.float64).tiny)
    return float(np.linalg.norm(difference) / scale), float(np.abs(difference).max())


def _stored(src: pathlib.Path, dst: pathlib.Path, name: str) -> Iterator[Row]:
    """A row for each tensor of the checkpoint.

    Raises:
        ValueError: the two have different configs.
    """
    component = COMPONENTS[name]
    config, _ = open_network(src / name, component)
    converted, parameters = open_parameters(dst, name)
    theirs, found = dataclasses.asdict(config), dataclasses.asdict(converted)
    if differing := [key for key in theirs if found[key] != theirs[key]]:
        values = ", ".join(f"{key} = {found[key]!r}, not {theirs[key]!r}" for key in differing)
        raise ValueError(f"{dst / name}: no conversion of {src / name}: {values}")
    ours = {
        key: tensor
        for place in component.names(config)
        for key, tensor in place.to_theirs(parameters[place.target]).items()
    }
    for key, theirs in reference.stored_tensors(src / name):
        tensor = ours[component.aliases.get(key, key)]
        errors = (0.0, 0.0) if np.array_equal(tensor, theirs) else _errors(tensor, theirs)
        shape = "x".join(map(str, theirs.shape))
        yield Row(f"{name}: {len(ours)} stored tensors", f"{name}.{key}", shape, *errors, 0.0)


def _copies(src: pathlib.Path, dst: pathlib.Path) -> Iterator[Row]:
    """A row for each file of tokenizer and scheduler, the same or not."""
    for path in sorted({*companion_files(src), *companion_files(dst)}):
        files = [root / path for root in (src, dst)]
        contents = [file.read_bytes() if file.is_file() else None for file in files]
        error = 0.0 if contents[0] == contents[1] else np.inf
        size = f"{len(contents[0] or b'')} bytes"
        yield Row(f"{path.parts[0]}: copied files", str(path), size, error, error, 0.0)
