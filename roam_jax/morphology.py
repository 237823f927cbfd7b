"""Bodies as trees of joints, and what a simulated world shows of one: the border of `sim/`.

Simulation, demonstrations, cloned policies and rollouts agree on a `WorldSpec`. It travels as JSON
in the metadata of demonstrations and in a run's workdir, so that a policy can say whether a body is
one that it was trained on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

ROOT = -1
JOINT_KINDS = ("hinge", "slide")
# The stream of joints, and the numbers of each: rad or m, per second, commanded minus measured.
JOINTS = "joints"
JOINT_NUMBERS = ("position", "velocity", "lag")
# A stream of frames, which a spec does not list: (S, S, 3) uint8 where it is asked for.
PIXELS = "pixels"


@dataclasses.dataclass(frozen=True)
class Joint:
    """One driven joint, and the link that it moves.

    Args:
        name: no two alike in a body.
        parent: place of the joint before it in the tree, lower than its own, or `ROOT`.
        kind: one of `JOINT_KINDS`.
        low, high: range of positions in rad or m.
        length: of the link in m.
    """

    name: str
    parent: int
    kind: str
    low: float
    high: float
    length: float


@dataclasses.dataclass(frozen=True)
class Morphology:
    """A body: a tree of driven joints, parents before children.

    Args:
        name: of the body.
        joints: at least one.

    Raises:
        ValueError: no joints, two of one name, a parent that does not come before its child, an
            unknown kind or an empty range.
    """

    name: str
    joints: tuple[Joint, ...]

    def __post_init__(self):
        names = self.joint_names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"body {self.name!r}: joints {names}, expected some, each name once")
        for place, joint in enumerate(self.joints):
            if not ROOT <= joint.parent < place:
                raise ValueError(
                    f"body {self.name!r}: joint {joint.name!r} at place {place} has parent "
                    f"{joint.parent}, expected {ROOT} (the root) to {place - 1}"
                )
            if joint.kind not in JOINT_KINDS or not joint.low < joint.high:
                raise ValueError(
                    f"body {self.name!r}: joint {joint.name!r} is a {joint.kind} from {joint.low} "
                    f"to {joint.high}, expected one of {JOINT_KINDS} with low < high"
                )

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(joint.name for joint in self.joints)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of joints between each and the root."""
        depths: list[int] = []
        for joint in self.joints:
            depths.append(0 if joint.parent == ROOT else depths[joint.parent] + 1)
        return tuple(depths)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) places, without the root."""
        return tuple((j.parent, i) for i, j in enumerate(self.joints) if j.parent != ROOT)


@dataclasses.dataclass(frozen=True)
class VectorStream:
    """Vectors that a world shows: `cells` of them, of the same dimensions.

    Args:
        name: such as "goal".
        dimensions: names of the numbers.
        scales: their usual size, by which they are divided before a model sees them.
        cells: number of vectors.
    """

    name: str
    dimensions: tuple[str, ...]
    scales: tuple[float, ...]
    cells: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(cells, numbers of each)."""
        return self.cells, len(self.dimensions)


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """One environment on one body, as a policy sees it.

    Args:
        environment: such as "reach".
        morphology: the body. An action has a number in [-1, 1] for each of its joints.
        streams: what is observed; the first is `JOINTS`, with `JOINT_NUMBERS`.
        period: seconds between actions.
        steps: actions of an episode.
    """

    environment: str
    morphology: Morphology
    streams: tuple[VectorStream, ...]
    period: float
    steps: int

    @property
    def name(self) -> str:
        """Such as "reach/arm3"."""
        return f"{self.environment}/{self.morphology.name}"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WorldSpec:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is not the JSON of a spec.
        """
        try:
            fields = json.loads(text)
            body = fields["morphology"]
            joints = tuple(Joint(**joint) for joint in body["joints"])
            streams = tuple(VectorStream(**_tuples(s)) for s in fields["streams"])
            return cls(
                environment=fields["environment"],
                morphology=Morphology(body["name"], joints),
                streams=streams,
                period=fields["period"],
                steps=fields["steps"],
            )
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"world spec {text[:80]!r}: {error!r}") from error

    def differences(self, other: WorldSpec) -> list[str]:
        """What of another spec is not as here, each as "what: here X, there Y"."""
        found = []
        mine, theirs = self.morphology, other.morphology
        pairs: dict[str, tuple[Any, Any]] = {
            "environment": (self.environment, other.environment),
            "joints": (mine.joint_names, theirs.joint_names),
            "tree of parents": (_parents(mine), _parents(theirs)),
            "kinds of joints": (_kinds(mine), _kinds(theirs)),
            "observed streams": (_shapes(self), _shapes(other)),
            "seconds between actions": (self.period, other.period),
        }
        for what, (here, there) in pairs.items():
            if here != there:
                found.append(f"{what}: here {here}, there {there}")
        return found


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _parents(body: Morphology) -> tuple[int, ...]:
    return tuple(joint.parent for joint in body.joints)


def _kinds(body: Morphology) -> tuple[str, ...]:
    return tuple(joint.kind for joint in body.joints)


def _shapes(spec: WorldSpec) -> dict[str, tuple[int, int]]:
    return {stream.name: stream.shape for stream in spec.streams}
