"""What lies in a folder or file of weights: every tensor, its size, and where it goes.

Headers alone are read, so it takes no longer for 10 GB than for 10 MB.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from convert.loops import LOOPS_FILE
from roam_jax.cogvideox.components import (
    COMPONENTS,
    CONFIG_FILE,
    SCHEDULER,
    TOKENIZER,
    Component,
)
from roam_jax.cogvideox.importing import MANIFEST_FILE, WEIGHTS_FILE, companion_files
from roam_jax.cogvideox.load import read_manifest
from roam_jax.cogvideox.mapped import DTYPES, TensorHeader, read_headers
from roam_jax.cogvideox.names import LAYER, TensorName, source_shapes, target_shapes
from roam_jax.cogvideox.source import PIPELINE_FILE, checkpoint_headers, find_networks
from roam_jax.evaluate import model_directory

# Names of a graft, whatever it is grafted on.
_GRAFT = re.compile(r"(graft|blocks|patch_embed|time_embedding|norm_final|norm_out|proj_out)/")
_EMBEDDINGS = ("embeddings",)
_READ = tuple(map(str, DTYPES.values()))
_NUMBER = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor.

    Args:
        key: its name in the file.
        header: dtype, shape, bytes.
        place: where it goes in our tree, or what of theirs it is made of; "" = left over.
    """

    key: str
    header: TensorHeader
    place: str


@dataclasses.dataclass(frozen=True)
class Part:
    """The tensors of one network or file.

    Args:
        name: where it lies, as the user wrote it.
        kind: what it is.
        tensors: all that there are.
        problems: what is missing or misshapen, a line each; empty if the model is whole.
    """

    name: str
    kind: str
    tensors: tuple[Tensor, ...]
    problems: tuple[str, ...] = ()

    @property
    def left_over(self) -> tuple[str, ...]:
        """Tensors that go nowhere."""
        return tuple(tensor.key for tensor in self.tensors if not tensor.place)


def inspect(path: pathlib.Path) -> list[Part]:
    """Looks at a diffusers directory, a converted folder, an export, or one file.

    Raises:
        FileNotFoundError: nothing of that kind is there.
        ValueError: a file is damaged, or of another model.
    """
    if path.is_file():
        return [_file(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if model_directory.is_model_directory(path):
        model_directory.read_model_directory(path)  # whole, or it says what is wrong
        return [_graft(path / model_directory.WEIGHTS_FILE, "what a graft trained")]
    if (single := _network_of(path)) is not None:
        return [_network(path, single)]
    if _is_run(path):
        raise ValueError(
            f"{path}: this is a run; `python -m convert export --workdir {path} --dst DIR` writes "
            "what it trained"
        )
    parts = [_graft(path / LOOPS_FILE, "what a graft adds")] if (path / LOOPS_FILE).exists() else []
    if not parts or (path / PIPELINE_FILE).exists() or any((path / n).is_dir() for n in COMPONENTS):
        parts = [*(_network(path / name, name) for name in find_networks(path)), *parts]
    return [*parts, *_strangers(path)]


def _is_run(path: pathlib.Path) -> bool:
    try:
        saved = json.loads((path / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and {"config", "provenance"} <= saved.keys()


def companions(path: pathlib.Path) -> list[str]:
    """The files of tokenizer and scheduler with their sizes, a line each."""
    if not path.is_dir():
        return []
    files = companion_files(path)
    return [f"{path / file}: {(path / file).stat().st_size:,} bytes" for file in files]


def unread(path: pathlib.Path) -> list[str]:
    """What else lies in a folder and plays no part."""
    if not path.is_dir() or model_directory.is_model_directory(path) or _network_of(path):
        return []
    known = {*COMPONENTS, TOKENIZER, SCHEDULER, PIPELINE_FILE, LOOPS_FILE, "loops.json"}
    return sorted(entry.name for entry in path.iterdir() if entry.name not in known)


def table(part: Part, *, every_key: bool) -> str:
    """One part in columns; layers that differ in their numbers alone share a line."""
    rows = [(t.key, t.header, t.place, 1) for t in part.tensors] if every_key else _folded(part)
    cells = [("key", "shape", "dtype", "bytes", "maps to")]
    for key, header, ours, count in rows:
        shape = f"{f'{count} x ' if count > 1 else ''}{'x'.join(map(str, header.shape)) or '1'}"
        size = f"{header.bytes * count:,}"
        cells.append((key, shape, header.dtype, size, ours or "LEFT OVER"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join(f"{{:{'>' if i == 3 else '<'}{width}}}" for i, width in enumerate(widths))
    lines = [f"{part.name}: {part.kind}", *(f"  {form.format(*row)}".rstrip() for row in cells)]
    return "\n".join([*lines, *(f"  {line}" for line in part.problems), f"  {_totals(part)}"])


def _totals(part: Part) -> str:
    size = sum(tensor.header.bytes for tensor in part.tensors)
    numbers = sum(math.prod(tensor.header.shape) for tensor in part.tensors)
    dtypes: dict[str, int] = {}
    for tensor in part.tensors:
        dtypes[tensor.header.dtype] = dtypes.get(tensor.header.dtype, 0) + 1
    listed = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    return (
        f"{len(part.tensors)} tensors ({listed}), {numbers:,} parameters, {size:,} bytes, "
        f"{len(part.left_over)} left over"
    )


def _network_of(folder: pathlib.Path) -> str | None:
    """Which network the folder itself is, by its config.json."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        classes = {config.get("_class_name"), *(config.get("architectures") or ())}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    found = [name for name, component in COMPONENTS.items() if component.class_name in classes]
    return found[0] if found else None


def _network(folder: pathlib.Path, name: str) -> Part:
    """One network, in its package's format or converted."""
    component = COMPONENTS[name]
    names = component.names(component.read_config(folder))
    if (folder / MANIFEST_FILE).exists() or (folder / WEIGHTS_FILE).exists():
        headers = read_headers(folder / WEIGHTS_FILE)
        ours, theirs = target_shapes(names), {name.target: _origin(name) for name in names}
        tensors = [Tensor(key, header, theirs.get(key, "")) for key, header in headers.items()]
        kind = f"converted {component.class_name}"
        stacks = [(key,) for key in headers]
        problems = (*_problems(ours, headers), *_dtypes(stacks, headers), *_manifest(folder))
        return Part(str(folder), kind, tuple(tensors), problems)
    headers = checkpoint_headers(folder)
    ours = dict(_targets(names))
    ours |= {key: f"copy of {of}" for key, of in component.aliases.items() if of in headers}
    lone = {key: of for key, of in component.aliases.items() if of not in headers}
    ours |= {key: ours[of] for key, of in lone.items()}
    kind = f"{component.class_name} of {component.library}"
    tensors = [Tensor(key, header, ours.get(key, "")) for key, header in headers.items()]
    found = {lone.get(key, key): header for key, header in headers.items()}
    stacks = [name.keys for name in names]
    problems = (*_problems(source_shapes(names), found), *_dtypes(stacks, found))
    return Part(str(folder), kind, tuple(tensors), problems)


def _origin(name: TensorName) -> str:
    """The keys that a parameter of ours is made of."""
    return name.source.replace(LAYER, f"{{0..{name.stacked - 1}}}")


def _targets(names: Iterable[TensorName]) -> Iterator[tuple[str, str]]:
    for name in names:
        for layer, key in enumerate(name.keys):
            yield key, f"{name.target}[{layer}]" if name.stacked else name.target


def _problems(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorHeader]
) -> tuple[str, ...]:
    missing = [f"MISSING {key} {shape}" for key, shape in expected.items() if key not in found]
    misshapen = [
        f"MISSHAPEN {key} has {found[key].shape}, expected {shape}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    return (*missing, *misshapen)


def _dtypes(stacks: Iterable[Sequence[str]], found: Mapping[str, TensorHeader]) -> Iterator[str]:
    """What `import` would refuse of the dtypes of tensors, of those that are stacked together."""
    for keys in stacks:
        dtypes = {key: found[key].dtype for key in keys if key in found}
        others = [key for key, dtype in dtypes.items() if dtype not in _READ]
        yield from (f"DTYPE {k} is {dtypes[k]}, expected {', '.join(_READ)}" for k in others)
        if len(set(dtypes.values())) > 1:
            listed = ", ".join(sorted(set(dtypes.values())))
            yield f"DTYPES of {keys[0]} and its like in other layers: {listed}, expected one"


def _manifest(folder: pathlib.Path) -> Iterator[str]:
    try:
        read_manifest(folder)
    except (FileNotFoundError, ValueError) as error:
        yield f"MANIFEST {error}"


def _file(path: pathlib.Path) -> Part:
    """One file: canvas-engineering's, or safetensors of any origin."""
    if path.suffix != ".safetensors":
        return _ce(path)
    headers = read_headers(path)
    if set(headers) == set(_EMBEDDINGS):
        tensors = [Tensor(key, header, "data.text") for key, header in headers.items()]
        return Part(str(path), "text embeddings", tuple(tensors))
    if name := _network_of(path.parent):
        if path.name == WEIGHTS_FILE or not list(path.parent.glob("*.index.json")):
            return _network(path.parent, name)
        component = COMPONENTS[name]
        ours = dict(_targets(component.names(component.read_config(path.parent))))
        tensors = [Tensor(key, h, ours.get(key, "")) for key, h in headers.items()]
        return Part(str(path), f"a shard of {component.class_name}", tuple(tensors))
    if any(key.startswith(("blocks/loop/", "graft/")) for key in headers):
        return _graft(path, "parameters of a graft")
    return Part(str(path), "tensors", _guessed(headers))


def _guessed(headers: Mapping[str, TensorHeader]) -> tuple[Tensor, ...]:
    """A file without a config: the network that knows most of its keys says where they go."""
    known = [_patterns(component) for component in COMPONENTS.values()]
    found = [{key: _match(key, patterns) for key in headers} for patterns in known]
    best = max(found, key=lambda ours: sum(map(bool, ours.values())))
    return tuple(Tensor(key, header, best[key]) for key, header in headers.items())


def _patterns(component: Component) -> dict[str, str]:
    """Key with its layer as "{layer}" -> our name, of the published sizes."""
    names = component.names(component.config())
    return {n.source: n.target for n in names} | {n.target: n.target for n in names}


def _match(key: str, patterns: Mapping[str, str]) -> str:
    if key in patterns:
        return patterns[key]
    layer = _NUMBER.search(key)
    found = patterns.get(_NUMBER.sub("{layer}", key, count=1), "")
    return f"{found}[{layer[1]}]" if layer and found else found


def _graft(path: pathlib.Path, kind: str) -> Part:
    """Parameters under our names."""
    headers = read_headers(path)
    tensors = [Tensor(k, header, k if _GRAFT.match(k) else "") for k, header in headers.items()]
    return Part(str(path), kind, tuple(tensors))


def _ce(path: pathlib.Path) -> Part:
    # torch, for these files alone
    from convert.canvas_engineering import our_name, read_checkpoint, read_tensors

    tensors = [
        Tensor(key, TensorHeader(str(x.dtype), x.shape, x.nbytes), our_name(key) or "")
        for key, x in read_tensors(path)
    ]
    problems = []
    if all(tensor.place for tensor in tensors):
        try:
            read_checkpoint(path)
        except ValueError as error:
            problems.append(f"REFUSED {error}")
    kind = "loops and action head of canvas-engineering"
    return Part(str(path), kind, tuple(tensors), tuple(problems))


def _strangers(path: pathlib.Path) -> Iterator[Part]:
    """safetensors in places where no part of CogVideoX-2B lies."""
    known = {path / name for name in COMPONENTS} | {path}
    for file in sorted(path.rglob("*.safetensors")):
        if file.parent not in known or (file.parent == path and file.name != LOOPS_FILE):
            tensors = [Tensor(key, header, "") for key, header in read_headers(file).items()]
            yield Part(str(file), "of no part of CogVideoX-2B", tuple(tensors))


def _folded(part: Part) -> list[tuple[str, TensorHeader, str, int]]:
    """A line for all tensors whose names differ in numbers alone, and in each of them freely."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in part.tensors:
        form = _NUMBER.sub("#", tensor.key), _NUMBER.sub("#", tensor.place), tensor.header
        groups.setdefault(form, []).append(tensor)
    return [row for tensors in groups.values() for row in _lines(tensors, fixed=0)]


def _lines(tensors: list[Tensor], *, fixed: int) -> Iterator[tuple[str, TensorHeader, str, int]]:
    """Folds what it can; where not all numbers vary freely, the first ones are told apart."""
    numbers = [tuple(map(int, _NUMBER.findall(tensor.key))) for tensor in tensors]
    ranges = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    steady = all(r == list(range(r[0], r[-1] + 1)) for r in ranges)
    if steady and math.prod(map(len, ranges)) == len(tensors):
        keys, ours = ([getattr(t, n) for t in tensors] for n in ("key", "place"))
        yield _merged(keys), tensors[0].header, _merged(ours), len(tensors)
        return
    parts: dict[int, list[Tensor]] = {}
    for tensor, own in zip(tensors, numbers, strict=True):
        parts.setdefault(own[fixed], []).append(tensor)
    for some in parts.values():
        yield from _lines(some, fixed=fixed + 1)


def _merged(keys: list[str]) -> str:
    """The names as one, a number that varies as {first..last}."""
    pieces = zip(*(_NUMBER.split(key) for key in keys), strict=True)
    merged = []
    for piece in pieces:
        found = set(piece)
        numbers = sorted(map(int, found)) if len(found) > 1 else []
        merged.append(f"{{{numbers[0]}..{numbers[-1]}}}" if numbers else piece[0])
    return "".join(merged)
