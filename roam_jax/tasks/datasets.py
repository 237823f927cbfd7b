"""From a config to opened data: one dataset, or a mixture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import ml_collections

from roam_jax.cogvideox.importing import hash_file
from roam_jax.contracts import TimeSpec
from roam_jax.data.embedded import ensure_embedded
from roam_jax.data.members import DatasetChoice, Member, open_members
from roam_jax.data.options import LANGUAGE_EMBEDDING, WindowOptions

EMBEDDED = "embedded"


def open_data(config: ml_collections.ConfigDict) -> tuple[Member, ...]:
    """The datasets of a config: that of `data.root`, or the members of `data.mixture`.

    Raises:
        FileNotFoundError, ValueError: as `open_members`, or a mixture that is not written as such.
    """
    data = config.data
    options = WindowOptions(
        time=TimeSpec(data.frames, config.canvas.t_current),
        image_size=tuple(data.image_size),
        rate=data.rate,
        goal=data.goal,
        text=data.text,
        skip_empty_instructions=data.skip_empty_instructions,
    )
    return open_members(
        dataset_choices(data),
        options,
        cameras=tuple(data.cameras),
        actions=data.mixture_actions,
    )


def dataset_choices(data: ml_collections.ConfigDict) -> tuple[DatasetChoice, ...]:
    """The datasets that `config.data` names; embedded ones are written on first use.

    Raises:
        ValueError: a member of `data.mixture` that is no (name, weight, root[, declaration]).
    """
    if not data.mixture:
        return (DatasetChoice(data_root(data.root), declaration=data.declaration),)
    choices = []
    for entry in data.mixture:
        kinds = [type(value) for value in entry] if isinstance(entry, tuple | list) else []
        if kinds[:1] + kinds[2:] not in ([str, str], [str, str, str]) or kinds[1] not in (
            int,
            float,
        ):
            raise ValueError(
                f"data.mixture: member {entry!r}, expected (name, weight, root) or (name, weight, "
                "root, declaration)"
            )
        name, weight, root, *declaration = entry
        choices.append(DatasetChoice(data_root(root), name, float(weight), *declaration))
    return tuple(choices)


def data_root(root: str) -> pathlib.Path:
    """Folder of the dataset that `data.root` names; writes embedded data on first use."""
    name, _, variant = root.partition(":")
    if name == EMBEDDED:
        return ensure_embedded(variant=variant or "default")
    return pathlib.Path(root).expanduser()


def data_fingerprints(
    config: ml_collections.ConfigDict, members: Sequence[Member]
) -> dict[str, str]:
    """Of all that is read beside the weights: data, data/val, of a mixture data/NAME[/val]."""
    found = {}
    for member in members:
        name = f"data/{member.name}" if member.name else "data"
        found[name] = member.train.describe()["fingerprint"]
        found[f"{name}/val"] = member.val.describe()["fingerprint"]
    if config.data.text != LANGUAGE_EMBEDDING:
        found["text"] = hash_file(pathlib.Path(config.data.text).expanduser())
    return found
