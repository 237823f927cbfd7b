"""Schema files: a layout and its topology as JSON that canvas-engineering reads and writes too.

What canvas-engineering's (CE's) format has no place for lies under `metadata.roam`, which CE keeps
and ignores; what it has and nothing here reads (`semantic_type`, `operator`, ...) is kept as it
stands. So a file may go through both packages any number of times. Where CE fills in, drops or
skips in silence, a file is refused.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from roam_jax.canvas import schema_format as form
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.schema_format import located
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill, frame_weights


@dataclasses.dataclass(frozen=True)
class CanvasSchema:
    """A canvas as one thing to store and to pass on.

    Args:
        layout: the grid and its regions.
        topology: which region reads which; None = not declared.
        version: of the file format, "major.minor" or "major.minor.patch".
        metadata: any JSON values; the name "roam" is taken.
        region_extras: region -> CE's fields that nothing here reads: `semantic_type`,
            `semantic_embedding`, `embedding_model`, `carrier`.
        edge_extras: the same for each connection of the topology in turn: `operator`,
            `write_mode`; empty where no connection has any.

    Raises:
        ValueError: the version is newer than this package reads, a connection or an extra names an
            unknown region or field, a connection a frame without tokens, or there are more or fewer
            extras than connections.
    """

    layout: CanvasLayout
    topology: CanvasTopology | None = None
    version: str = form.FORMAT_VERSION
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    region_extras: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    edge_extras: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self):
        form.require_version(self.version)
        if "roam" in self.metadata:
            raise ValueError("metadata.roam is written by this package: expected another name")
        for index, edge in enumerate(self._connections):
            with located(f"topology[{index}] {edge.src} -> {edge.dst}"):
                frame_weights((edge,), self.layout)
        for name, extras in self.region_extras.items():
            with located(f"region_extras[{name!r}]"):
                self.layout.region_spec(name)
                form.require_known(extras, form.REGION_EXTRAS)
        if self.edge_extras and len(self.edge_extras) != len(self._connections):
            raise ValueError(
                f"{len(self.edge_extras)} edge_extras for {len(self._connections)} connections: "
                "expected one for each, or none"
            )
        for index, extras in enumerate(self.edge_extras):
            with located(f"edge_extras[{index}]"):
                form.require_known(extras, form.EDGE_EXTRAS)

    @property
    def _connections(self) -> tuple[Connection, ...]:
        return () if self.topology is None else self.topology.connections

    def changed_for_ce(self) -> list[str]:
        """What canvas-engineering would read otherwise from the file, one text each.

        CE gives tokens to every cell of a region's box, fills every edge by `hold`, and lets edges
        without offsets read all frames. Fills and pairs of frames count where they change what the
        edge reads on this layout.
        """
        changed = [
            f"regions.{name}.length = {spec.length} (read as {spec.volume})"
            for name, spec in self.layout.regions.items()
            if spec.length not in (None, spec.volume)
        ]
        for index, edge in enumerate(self._connections):
            read = dataclasses.replace(
                edge, temporal_fill=TemporalFill.HOLD, interpolation_order=1, pairs=None
            )
            if np.array_equal(*(frame_weights((e,), self.layout) for e in (edge, read))):
                continue
            if edge.pairs is None:
                fields = _written(edge, form.EDGE_TIMES).items()
                text = ", ".join(f"{name} = {v}" for name, v in fields) + " (read as hold)"
            else:
                text = f"{len(edge.pairs)} pairs of frames (read as all)"
            changed.append(f"topology[{index}] {edge.src} -> {edge.dst}: {text}")
        return changed

    def to_dict(self) -> dict[str, Any]:
        """The values of the file; defaults are left out, as CE does."""
        layout = self.layout
        values: dict[str, Any] = {
            "schema_version": self.version,
            "layout": {
                "T": layout.T,
                "spatial_shape": [layout.H, layout.W],
                "d_model": layout.d_model,
                "t_current": layout.t_current,
            },
            "regions": {
                name: _written(spec, form.REGION, extras=self.region_extras.get(name, {}))
                for name, spec in layout.regions.items()
            },
        }
        if self.topology is not None:
            edge_extras = self.edge_extras or ({},) * len(self._connections)
            values["topology"] = [
                _written(edge, form.EDGE, extras=extras)
                for edge, extras in zip(self._connections, edge_extras, strict=True)
            ]
        notes = self._notes()
        if self.metadata or notes:
            values["metadata"] = {**self.metadata, **({"roam": notes} if notes else {})}
        return values

    def _notes(self) -> dict[str, Any]:
        """metadata.roam: what CE's format has no place for."""
        regions = {
            name: _written(spec, form.REGION_NOTE)
            for name, spec in self.layout.regions.items()
            if spec.length is not None
        }
        edges = [
            {"index": index, **_written(edge, form.EDGE_KEY), **note}
            for index, edge in enumerate(self._connections)
            if (note := _written(edge, form.EDGE_TIMES))
        ]
        return {name: notes for name, notes in (("regions", regions), ("topology", edges)) if notes}

    @classmethod
    def from_dict(cls, values: Any) -> CanvasSchema:
        """The schema of a file's values; raises as `from_json` does, without the file's name."""
        if isinstance(values, dict):
            # First, because a newer format may well have other fields.
            form.require_version(values.get("schema_version", form.FORMAT_VERSION))
        form.require_fields(values, form.FILE)
        metadata = dict(values.get("metadata", {}))
        notes = metadata.pop("roam", {})
        with located("metadata.roam"):
            form.require_fields(notes, form.NOTES)
        layout = _read_layout(values, notes.get("regions", {}))
        edges = values.get("topology", [])
        connections = _read_connections(edges, notes.get("topology", []))
        regions = {
            name: _picked(region, form.REGION_EXTRAS) for name, region in values["regions"].items()
        }
        edge_extras = tuple(_picked(edge, form.EDGE_EXTRAS) for edge in edges)
        return cls(
            layout=layout,
            topology=CanvasTopology(connections) if "topology" in values else None,
            version=values.get("schema_version", form.FORMAT_VERSION),
            metadata=metadata,
            region_extras={name: extras for name, extras in regions.items() if extras},
            edge_extras=edge_extras if any(edge_extras) else (),
        )

    def to_json(self, path: str | os.PathLike[str], *, for_ce: str | None = None) -> None:
        """Write a file that both packages read; an older file is replaced as a whole.

        Args:
            path: the file; its folder exists.
            for_ce: None refuses a schema that canvas-engineering would read otherwise, see
                `changed_for_ce`; "lossy" writes it all the same. The file is complete for this
                package in either case.

        Raises:
            ValueError: canvas-engineering would read another canvas; the message names the fields.
        """
        if for_ce not in (None, "lossy"):
            raise ValueError(f"for_ce = {for_ce!r}: expected None or 'lossy'")
        if for_ce is None and (changed := self.changed_for_ce()):
            raise ValueError(
                f"{path}: canvas-engineering would read another canvas: {'; '.join(changed)}. "
                "for_ce='lossy' writes it all the same, complete for this package"
            )
        form.write_json(pathlib.Path(path), self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CanvasSchema:
        """Read a file of either package.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no JSON, of a newer format, or not two-dimensional in space; a field
                is unknown, missing or of a wrong type; regions overlap, or a value is out of range.
                The message names the file, the place in it, and what was expected.
        """
        with located(os.fspath(path)):
            return cls.from_dict(form.read_json(pathlib.Path(path)))


def _read_layout(values: Mapping[str, Any], notes: Mapping[str, Any]) -> CanvasLayout:
    """The layout of a file; `notes` is metadata.roam.regions."""
    size = values["layout"]
    with located("layout"):
        form.require_fields(size, form.LAYOUT)
        H, W = _spatial_shape(size)
    with located("metadata.roam.regions"):
        form.require_known(notes, values["regions"], what="region")
    regions = {}
    for name, region in values["regions"].items():
        with located(f"regions.{name}"):
            form.require_fields(region, form.REGION)
            read = {key: value for key, value in region.items() if key not in form.REGION_EXTRAS}
            read["bounds"] = tuple(region["bounds"])
            if name in notes:
                with located("metadata.roam"):
                    read["length"] = _noted_length(notes[name], bounds=region["bounds"])
            regions[name] = RegionSpec(**read)
    t_current = size.get("t_current", 0)
    return CanvasLayout(size["T"], H, W, size["d_model"], regions=regions, t_current=t_current)


def _noted_length(note: Any, *, bounds: list[int]) -> int:
    """The length of a region's note, which holds for the box that it was written for alone."""
    form.require_fields(note, form.REGION_NOTE)
    if note["bounds"] != bounds:
        raise ValueError(
            f"length {note['length']} was written for the box {note['bounds']}, the region has "
            f"{bounds}: expected the same"
        )
    return note["length"]


def _spatial_shape(size: Mapping[str, Any]) -> tuple[int, int]:
    """H and W, from either form of the format."""
    old = [name for name in ("H", "W") if name in size]
    if "spatial_shape" in size and old:
        raise ValueError(f"has both spatial_shape and {', '.join(old)}: expected one form")
    if "spatial_shape" not in size:
        if len(old) < 2:
            raise ValueError("missing spatial_shape, or H and W")
        return size["H"], size["W"]
    shape = size["spatial_shape"]
    if len(shape) != 2:
        raise ValueError(f"spatial_shape {shape}: expected two dimensions, H and W")
    return shape[0], shape[1]


def _read_connections(edges: list[Any], notes: list[Any]) -> tuple[Connection, ...]:
    """The connections of a file; `notes` is metadata.roam.topology."""
    read = []
    for index, edge in enumerate(edges):
        with located(f"topology[{index}]"):
            form.require_fields(edge, form.EDGE)
            fields = {key: value for key, value in edge.items() if key not in form.EDGE_EXTRAS}
            read.append(Connection(**fields))
    noted = set()
    for number, note in enumerate(notes):
        with located(f"metadata.roam.topology[{number}]"):
            form.require_fields(note, form.EDGE_NOTE)
            index, key = note["index"], _picked(note, form.EDGE_KEY)
            if index in noted:
                raise ValueError(f"index {index} has a note already: expected one for an edge")
            noted.add(index)
            found = _written(read[index], form.EDGE_KEY) if 0 <= index < len(read) else "missing"
            if found != key:
                raise ValueError(f"topology[{index}] is {found}: expected {key}, as it was written")
            fill = TemporalFill(note.get("temporal_fill", TemporalFill.HOLD))
            order = note.get("interpolation_order", 1)
            pairs = tuple(map(tuple, note["pairs"])) if "pairs" in note else None
            read[index] = dataclasses.replace(
                read[index], temporal_fill=fill, interpolation_order=order, pairs=pairs
            )
    return tuple(read)


def _picked(values: Mapping[str, Any], names: Mapping[str, Any] | tuple[str, ...]) -> dict:
    return {name: values[name] for name in names if name in values}


def _written(
    spec: RegionSpec | Connection,
    names: Mapping[str, form.Field],
    *,
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Those of the named fields that are no default, and the extras, in the names' order."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    values = {name: value for name, value in fields.items() if value != defaults[name]}
    picked = _picked(values | dict(extras or {}), names)
    return {name: _listed(value) for name, value in picked.items()}


def _listed(value: Any) -> Any:
    """Tuples as the lists that a file holds."""
    return [_listed(part) for part in value] if isinstance(value, tuple) else value
