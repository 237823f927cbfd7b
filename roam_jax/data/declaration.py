"""What a robot dataset's numbers mean: one declaration for each layout of features.

RLDS fixes how episodes are stored, not what cameras are called, which columns are a gripper, or
whether an action is a delta. A declaration says it in one place, in names of `features.json`.
BridgeData V2 and OXE's `bridge` come with the package and are told apart by their features, never
by name; any other dataset is a Python file with a `DATASET` (docs/data.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from roam_jax.contracts import VectorSpec
from roam_jax.spelling import check_choice, nearest

AUTO = "auto"
# Name that a declaration's file gives it.
VARIABLE = "DATASET"
KINDS = ("linear", "angle", "gripper")
PER_STEP = ("delta", "absolute")
# NumPy's letters of booleans, integers and floats.
NUMBER_KINDS = "biuf"
FeatureTable = Mapping[str, tfds.features.FeatureConnector]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Dimensions that a feature of every step holds.

    Args:
        names: of the dimensions.
        feature: as records name it, such as "steps/observation/state"; numbers or booleans.
        unit: of all of them.
        kind: linear, angle (rad) or gripper.
        columns: which numbers of the feature; None = all of them, in order.
        width: how many numbers the feature has in all; None = any.
        opened, closed: what a gripper stores when it is open and when it is closed.
        per_step: of an action: "delta", a change each step, which adds up where the rate is
            lowered; or "absolute", of which the last one counts. A gripper is always absolute.

    Raises:
        ValueError: columns and names differ in number, open and closed are the same, or there is no
            such kind or `per_step`.
    """

    names: tuple[str, ...]
    feature: str
    _: dataclasses.KW_ONLY
    unit: str = ""
    kind: str = "linear"
    columns: tuple[int, ...] | None = None
    width: int | None = None
    opened: float = 1.0
    closed: float = 0.0
    per_step: str = "delta"

    def __post_init__(self):
        if self.columns is not None and len(self.columns) != len(self.names):
            raise ValueError(
                f"{self.feature}: {len(self.columns)} columns for {len(self.names)} names "
                f"{self.names}; expected one each"
            )
        check_choice(f"{self.feature}: kind", self.kind, KINDS)
        check_choice(f"{self.feature}: per_step", self.per_step, PER_STEP)
        if self.opened == self.closed:
            raise ValueError(f"{self.feature}: opened = closed = {self.opened}; expected two")

    @property
    def action_kind(self) -> str:
        """Kind of the dimensions where they are an action's."""
        if self.kind == "gripper" or self.per_step == "absolute":
            return self.kind
        return "change"

    def take(self, values: np.ndarray) -> np.ndarray:
        """(steps, names) of the feature's (steps, width) numbers; grippers as 1 open, 0 closed."""
        values = values if self.columns is None else values[:, list(self.columns)]
        if self.kind != "gripper" or (self.opened, self.closed) == (1.0, 0.0):
            return values
        return (values - np.float32(self.closed)) / np.float32(self.opened - self.closed)


@dataclasses.dataclass(frozen=True)
class Reached:
    """Action dimensions that are what the arm did: the change of its state to the next frame.

    Args:
        names: of dimensions of the state; differences of angles are wrapped.
    """

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Published:
    """Quantiles of actions that others report, to notice another unit or convention.

    Args:
        datasets: names of datasets that they were made from.
        q01, q99: of the action's dimensions, at the declared rate.
    """

    datasets: tuple[str, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetDeclaration:
    """Where a dataset has what a model reads, and what its numbers mean.

    Args:
        name: of the layout, for reports.
        cameras: camera -> image feature.
        state: the robot's state, in the order of its dimensions.
        action: what is predicted, in the order of its dimensions.
        rate: steps a second.
        instruction: text feature; None = there is none.
        embedding: feature with a sentence embedding of the instruction; None = there is none.
        reward: feature; None = there is none, and 0 is read.
        episode_name: features that together name an episode; () = a hash of its states does.
        skip_first: steps at the start of an episode that are dropped.
        splits: the splits to train on and to validate on, by name or as a part of one, such as
            "train[:95%]" and "train[95%:]" (of episodes in stored order).
        published: known figures, or None.

    Raises:
        ValueError: a dimension twice, an action that follows a state that is not declared, or a
            value out of range.
    """

    name: str
    cameras: Mapping[str, str]
    state: tuple[Stored, ...]
    action: tuple[Stored | Reached, ...]
    rate: float
    instruction: str | None = None
    embedding: str | None = None
    reward: str | None = None
    episode_name: tuple[str, ...] = ()
    skip_first: int = 0
    splits: tuple[str, str] = ("train", "val")
    published: Published | None = None

    def __post_init__(self):
        if not self.cameras:
            raise ValueError(f"declaration {self.name!r}: no camera; expected at least one")
        if not self.rate > 0 or self.skip_first < 0:
            raise ValueError(
                f"declaration {self.name!r}: rate = {self.rate}, skip_first = {self.skip_first}; "
                "expected a rate above 0 and no negative number of steps"
            )
        for part in self.action:
            if isinstance(part, Reached):
                self._check_reached(part)
        try:
            specs = self.state_spec, self.action_spec
        except ValueError as error:
            raise ValueError(f"declaration {self.name!r}: {error}") from error
        if self.published and len(self.published.q01) != len(specs[1]):
            raise ValueError(
                f"declaration {self.name!r}: published figures of {len(self.published.q01)} "
                f"dimensions, expected {len(specs[1])}"
            )

    def _check_reached(self, part: Reached) -> None:
        """Refuses to follow what the state does not have, and grippers, whose action is binary."""
        kinds = {name: stored.kind for stored in self.state for name in stored.names}
        for name in part.names:
            if name not in kinds:
                raise ValueError(
                    f"declaration {self.name!r}: the action follows {name!r}, which the state does "
                    f"not have; did you mean {nearest(name, kinds)!r}?"
                )
            if kinds[name] == "gripper":
                raise ValueError(
                    f"declaration {self.name!r}: the action follows the gripper {name!r} of the "
                    "state; expected its command, Stored(..., kind='gripper')"
                )

    @property
    def state_spec(self) -> VectorSpec:
        """The dimensions of the state."""
        return _spec((n, part.unit, part.kind) for part in self.state for n in part.names)

    @property
    def action_spec(self) -> VectorSpec:
        """The dimensions of the action."""
        units = {name: part.unit for part in self.state for name in part.names}
        return _spec(
            (name, units[name], "change")
            if isinstance(part, Reached)
            else (name, part.unit, part.action_kind)
            for part in self.action
            for name in part.names
        )

    def digest(self) -> str:
        """Hash of what the numbers mean; names of cameras and layouts do not count."""
        meaning = self.state, self.action, self.skip_first, self.rate
        return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

    def number_features(self) -> tuple[str, ...]:
        """Features of every step whose numbers are read, each once."""
        parts = [part for part in (*self.state, *self.action) if isinstance(part, Stored)]
        rest = (self.reward,) if self.reward else ()
        return tuple(dict.fromkeys((*(part.feature for part in parts), *rest)))

    def features(self) -> tuple[str, ...]:
        """Every feature that is named, each once."""
        texts = (self.instruction, self.embedding, *self.episode_name)
        named = (*self.cameras.values(), *self.number_features(), *filter(None, texts))
        return tuple(dict.fromkeys(named))


def _spec(dimensions: Iterable[tuple[str, str, str]]) -> VectorSpec:
    """From (name, unit, kind) of each dimension."""
    return VectorSpec(*(tuple(zip(*dimensions, strict=True)) or ((), (), ())))


def load_declaration(name: str) -> DatasetDeclaration | None:
    """The declaration in a Python file; None for "auto".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no `DATASET`.
    """
    if name == AUTO:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"data.declaration = {name!r}: no such file; expected {AUTO!r} or a Python file with "
            f"a {VARIABLE} (docs/data.md)"
        )
    try:
        found = runpy.run_path(str(path)).get(VARIABLE)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"data.declaration = {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, DatasetDeclaration):
        raise ValueError(
            f"data.declaration = {name!r}: {VARIABLE} is {found!r}, expected a DatasetDeclaration"
        )
    return found


def check_features(declaration: DatasetDeclaration, features: FeatureTable, *, where: str) -> None:
    """Refuses a declaration that names what the data lacks, or takes numbers that are not there.

    Raises:
        ValueError: every feature that is missing with the nearest one that is not, or one that is
            of another type or width than declared.
    """
    missing = [name for name in declaration.features() if name not in features]
    if missing:
        listed = [f"{name} (did you mean {nearest(name, features)!r}?)" for name in missing]
        raise ValueError(
            f"{where}: the declaration {declaration.name!r} names features that features.json "
            f"lacks: {', '.join(listed)}"
        )
    for camera, name in declaration.cameras.items():
        feature = features[name]
        if not isinstance(feature, tfds.features.Image) or feature.shape[-1] != 3:
            raise ValueError(f"{where}: camera {camera!r}: {name} is {feature}, expected RGB")
    widths = {}
    for name in declaration.number_features():
        feature = features[name]
        kind = np.dtype(feature.np_dtype)
        scalar_or_vector = len(feature.shape) <= 1 and None not in feature.shape
        if not scalar_or_vector or kind.kind not in NUMBER_KINDS:
            raise ValueError(
                f"{where}: {name} is {feature}, expected numbers or booleans of a fixed size"
            )
        widths[name] = feature.shape[0] if feature.shape else 1
    if declaration.reward and widths[declaration.reward] != 1:
        raise ValueError(
            f"{where}: {declaration.reward} has {widths[declaration.reward]} numbers, "
            "expected one a step"
        )
    for part in (*declaration.state, *declaration.action):
        if isinstance(part, Stored):
            _check_columns(part, widths[part.feature], where=where)
    _check_texts(declaration, features, where=where)


def _check_texts(declaration: DatasetDeclaration, features: FeatureTable, *, where: str) -> None:
    """Refuses an instruction, a name or an embedding that is none."""
    expected = [
        ("instruction", declaration.instruction, "a text", 0, "OSU"),
        *(
            ("episode_name", name, "a text or an integer", 0, "OSUi")
            for name in declaration.episode_name
        ),
        ("embedding", declaration.embedding, "a vector of float32", 1, "f"),
    ]
    for field, name, what, dimensions, kinds in expected:
        if name is None:
            continue
        feature = features[name]
        if len(feature.shape) != dimensions or np.dtype(feature.np_dtype).kind not in kinds:
            raise ValueError(f"{where}: {field}: {name} is {feature}, expected {what}")


def _check_columns(part: Stored, width: int, *, where: str) -> None:
    if part.width not in (None, width):
        raise ValueError(
            f"{where}: {part.feature} has {width} numbers, expected {part.width} by the declaration"
        )
    columns = range(width) if part.columns is None else part.columns
    if len(columns) != len(part.names) or not all(0 <= column < width for column in columns):
        raise ValueError(
            f"{where}: {part.feature} has {width} numbers, the declaration takes "
            f"{list(columns)} as {', '.join(part.names)}"
        )
