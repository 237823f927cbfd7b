"""How often each player succeeds on each body."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from roam_jax.viz.figure import SERIES, picture


def draw_successes(
    path: pathlib.Path,
    stages: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    title: str = "",
) -> None:
    """A group for each body, in it a point with its interval for each player.

    Args:
        path: the PNG.
        stages: body -> player -> {"mean", "interval": [low, high] or None} of its success rate;
            all bodies with the same players.
        title: of the picture.
    """
    players = list(next(iter(stages.values())))
    with picture(path, width=max(3.2, 1.3 * len(stages) + 0.8), height=2.8) as figure:
        panel = figure.subplots()
        for number, player in enumerate(players):
            place = np.arange(len(stages)) + (number - (len(players) - 1) / 2) * 0.7 / len(players)
            found = [one[player] for one in stages.values()]
            means = np.array([one["mean"] for one in found])
            ends = np.array([one["interval"] or [one["mean"]] * 2 for one in found])
            reach = np.abs(ends.T - means)
            panel.errorbar(
                place,
                means,
                yerr=reach,
                fmt="o",
                markersize=4,
                capsize=2,
                color=SERIES[number % len(SERIES)],
                label=player,
            )
        panel.set_xticks(range(len(stages)), list(stages))
        panel.set_xlim(-0.6, len(stages) - 0.4)
        panel.set_ylim(-0.03, 1.03)
        panel.set_ylabel("success rate")
        panel.set_title(title, loc="left")
        figure.legend(loc="outside lower center", ncols=3)
