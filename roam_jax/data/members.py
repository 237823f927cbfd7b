"""The datasets of a run: one, or a mixture with weights, each with statistics of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from roam_jax.contracts import VectorSpec
from roam_jax.data.cached_statistics import cached_statistics, statistics_fingerprint
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.declaration import AUTO, DatasetDeclaration, load_declaration
from roam_jax.data.known import detect_in
from roam_jax.data.mixing import FINEST
from roam_jax.data.options import Spaces, WindowOptions
from roam_jax.data.statistics import RobotStatistics
from roam_jax.data.windows import WindowSource
from roam_jax.spelling import check_choice

MIXED_ACTIONS = ("same", "pad")
WEIGHT_TOLERANCE = 1e-6
# A smaller share would be rounded to none.
SMALLEST_WEIGHT = 1 / FINEST
NAME = re.compile(r"[\w-]+")


@dataclasses.dataclass(frozen=True)
class DatasetChoice:
    """One dataset that a run is to read.

    Args:
        root: version folder of a tfds dataset.
        name: what it is called in reports; "" where it stands alone.
        weight: its share of the windows, above 0.
        declaration: "auto", or a Python file with a `DATASET`.
    """

    root: str | os.PathLike
    name: str = ""
    weight: float = 1.0
    declaration: str = AUTO


@dataclasses.dataclass(frozen=True)
class Member:
    """A dataset that was opened.

    Args:
        name: what it is called; "" where it stands alone.
        weight: its share of the windows.
        train, val: windows, both scaled by statistics of the train split alone.
    """

    name: str
    weight: float
    train: WindowSource
    val: WindowSource

    @property
    def statistics(self) -> RobotStatistics:
        """Scaling of its actions and states."""
        return self.train.statistics

    def with_statistics(self, statistics: RobotStatistics) -> Member:
        """The same windows, scaled by other statistics."""
        splits = {
            name: getattr(self, name).with_statistics(statistics) for name in ("train", "val")
        }
        return dataclasses.replace(self, **splits)


def open_members(
    choices: Sequence[DatasetChoice],
    options: WindowOptions,
    *,
    cameras: tuple[str, ...],
    actions: str = "same",
    splits: tuple[str, ...] = (),
    known: Mapping[str, RobotStatistics] = MappingProxyType({}),
) -> tuple[Member, ...]:
    """Opens every dataset of a run.

    Args:
        choices: one dataset, or the members of a mixture.
        options: what a window holds.
        cameras: of every member.
        actions: same, members have the same dimensions; or pad, they are put together by name.
        splits: what to train and to validate on, such as ("train[:95%]", "train[95%:]"); () = what
            the declaration says.
        known: by member, the scaling that a run began with. It is kept where it is of the same
            episodes, because sketches of a very large set differ a little each time.

    Raises:
        FileNotFoundError, ValueError: as `EpisodeReader`, `WindowSource`, `cached_statistics`; an
            episode lies in both splits of a member; or members do not fit each other.
    """
    check_choice("data.mixture_actions", actions, MIXED_ACTIONS)
    if len(splits) not in (0, 2):
        raise ValueError(
            f"data.splits = {splits}: expected two, to train and to validate on, or ()"
        )
    check_weights(choices)
    readers = []
    for choice in choices:
        with _named(choice):
            readers.append(_open_splits(choice, cameras, splits))
    _check_held_out(choices, readers)
    spaces = common_spaces(choices, [train.declaration for train, _ in readers], rule=actions)
    members = []
    for number, (choice, pair) in enumerate(zip(choices, readers, strict=True)):
        with _named(choice):
            scale = _statistics(pair[0], options, known.get(choice.name))
            sources = (
                WindowSource(reader, options, statistics=scale, member=number, spaces=spaces)
                for reader in pair
            )
            members.append(Member(choice.name, choice.weight, *sources))
    _check_texts(members)
    return tuple(members)


def _check_held_out(
    choices: Sequence[DatasetChoice], readers: Sequence[tuple[EpisodeReader, EpisodeReader]]
) -> None:
    """Refuses an episode that one member trains on and any of them validates on, by its name."""
    for choice, (train, _) in zip(choices, readers, strict=True):
        trained = set(train.headers.names)
        for other, (_, val) in zip(choices, readers, strict=True):
            shared = trained & set(val.headers.names)
            if shared:
                both = [
                    f"{part.split}{f' of {c.name}' if c.name else ''}"
                    for c, part in ((choice, train), (other, val))
                ]
                raise ValueError(
                    f"{val.root}: {len(shared)} episodes lie in both {' and '.join(both)}, such "
                    f"as {min(shared)}; expected splits without a common episode"
                )


@contextlib.contextmanager
def _named(choice: DatasetChoice) -> Iterator[None]:
    """Says of which member of a mixture an error is."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not choice.name:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"data.mixture member {choice.name!r}: {error}") from error


def _statistics(
    train: EpisodeReader, options: WindowOptions, known: RobotStatistics | None
) -> RobotStatistics:
    """The known scaling where it is of these episodes, else that of the train split."""
    stride = options.stride(train.declaration.rate)
    if known is not None and known.fingerprint == statistics_fingerprint(train, stride=stride):
        return dataclasses.replace(known, root=str(train.root))
    return cached_statistics(train, stride=stride)


def check_weights(choices: Sequence[DatasetChoice]) -> None:
    """Refuses shares that are none, and names that reports and files could not tell apart.

    Raises:
        ValueError: names them.
    """
    names = [choice.name for choice in choices]
    odd = [name for name in names if name and not NAME.fullmatch(name)]
    if odd:
        raise ValueError(
            f"data.mixture: names {odd}: expected letters, digits, underscores and hyphens"
        )
    if len(set(names)) < len(names) or (len(names) > 1 and "" in names):
        raise ValueError(f"data.mixture: names {names}; expected a name for each, no two alike")
    wrong = {c.name: c.weight for c in choices if not SMALLEST_WEIGHT <= c.weight < math.inf}
    if wrong:
        raise ValueError(
            f"data.mixture: weights {wrong}: expected numbers above 0, at least {SMALLEST_WEIGHT:g}"
        )
    total = math.fsum(choice.weight for choice in choices)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        listed = ", ".join(f"{c.name} {c.weight:g}" for c in choices)
        raise ValueError(
            f"data.mixture: weights {listed} sum to {total:g}, expected 1 (such as "
            f"{', '.join(f'{c.name} {c.weight / total:.4g}' for c in choices)})"
        )


def _open_splits(
    choice: DatasetChoice, cameras: tuple[str, ...], splits: tuple[str, ...]
) -> tuple[EpisodeReader, EpisodeReader]:
    """Readers of the train and the validation split."""
    declaration = load_declaration(choice.declaration) or detect_in(choice.root)
    if splits:
        declaration = dataclasses.replace(declaration, splits=splits)
    train, val = (
        EpisodeReader(choice.root, split, cameras=cameras, declaration=declaration)
        for split in declaration.splits
    )
    return train, val


def common_spaces(
    choices: Sequence[DatasetChoice], declarations: Sequence[DatasetDeclaration], *, rule: str
) -> Spaces | None:
    """What the members' dimensions are brought to; None where they are the same.

    Raises:
        ValueError: they differ without a rule, or one name means two things.
    """
    specs = [Spaces(d.action_spec, d.state_spec) for d in declarations]
    if len(set(specs)) == 1:
        return None
    if rule == "same":
        listed = "; ".join(
            f"{choice.name}: actions {', '.join(spec.actions.names)} ({len(spec.actions)}), states "
            f"{', '.join(spec.proprio.names)} ({len(spec.proprio)})"
            for choice, spec in zip(choices, specs, strict=True)
        )
        raise ValueError(
            f"data.mixture: members have other dimensions ({listed}); expected the same in all, or "
            "--config.data.mixture_actions=pad"
        )
    return join_spaces(specs)


def join_spaces(specs: Sequence[Spaces]) -> Spaces | None:
    """All dimensions of several robots by name; None where they are the same.

    Raises:
        ValueError: one name means two things.
    """
    if len(set(specs)) == 1:
        return None
    return Spaces(*(_union(kind) for kind in zip(*specs, strict=True)))


def _union(specs: Sequence[VectorSpec]) -> VectorSpec:
    """Every dimension by name, in the order in which they first come."""
    meanings: dict[str, tuple[str, str]] = {}
    for spec in specs:
        for name, *meaning in zip(spec.names, spec.units, spec.kinds, strict=True):
            known = meanings.setdefault(name, tuple(meaning))
            if known != tuple(meaning):
                raise ValueError(
                    f"data.mixture: dimension {name!r} is {known} in one member and "
                    f"{tuple(meaning)} in another; expected one unit and kind, or another name"
                )
    units, kinds = zip(*meanings.values(), strict=True)
    return VectorSpec(tuple(meanings), units, kinds)


def _check_texts(members: Sequence[Member]) -> None:
    shapes = {member.name: member.train[0]["text"].shape for member in members}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"data.mixture: text embeddings of different shapes {shapes}; expected one, such as "
            "that of a file by `python -m convert text` for all (data.text)"
        )
