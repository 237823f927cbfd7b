"""`python -m roam_jax describe --what data`: what a config's episodes hold, and pictures of it.

Opens the data as a run would, with the same refusals. It needs no weights, and no embeddings: none
are read where `data.text` is empty.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections

from roam_jax.cli.describe_data_pictures import draw_data
from roam_jax.cli.describe_data_text import data_lines
from roam_jax.data.members import Member
from roam_jax.data.summary import summarise_members
from roam_jax.files import write_atomically
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.datasets import open_data


def describe_data(name: str, config: ml_collections.ConfigDict, out: pathlib.Path | None) -> None:
    """Prints the report and, with a folder, writes data.json and pictures there.

    Args:
        name: of the config, for the report.
        config: the whole config.
        out: an existing folder, or None.

    Raises:
        FileNotFoundError, ValueError: as `open_data`; no data is named, or `data.augment` is out of
            range.
    """
    if not (config.data.mixture or config.data.root):
        raise ValueError(
            "this config needs\n  --config.data.root=...  a copy of bridge_dataset/1.0.0 "
            "(docs/data.md), or 'embedded'"
        )
    augmentation = Augmentation.from_config(config)
    members = open_data(config)
    report = {"name": name, **data_report(members, config, augmentation)}
    print("\n".join(data_lines(report)))
    if out:
        write_atomically(out / "data.json", json.dumps(report, indent=1) + "\n")
        print(f"report:  {out / 'data.json'}")
        for path in draw_data(out, members, report, config):
            print(f"picture: {path}")


def data_report(
    members: Sequence[Member], config: ml_collections.ConfigDict, augmentation: Augmentation
) -> dict[str, Any]:
    """All that is printed, ready for JSON; docs/describe.md describes its layout."""
    train = members[0].train.describe()
    windows = config.train.steps * config.train.batch_size
    return {
        "window": {
            **{key: train[key] for key in ("frames", "observed_frames", "image_size", "cameras")},
            "goal": train["goal"],
            "text": str(config.data.text),
            "augment": augmentation.changed,
        },
        "windows": windows,
        "members": summarise_members(members, windows=windows),
    }
