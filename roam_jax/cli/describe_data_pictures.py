"""Pictures of the data of a config: episodes, histograms, counts, one window."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from roam_jax.contracts import VIDEO_FIELDS, Batch
from roam_jax.data.members import Member
from roam_jax.data.summary import spread_evenly
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.splits import file_name
from roam_jax.tasks.augment import Augmentation
from roam_jax.viz.counts import draw_instructions, draw_left_out, draw_lengths
from roam_jax.viz.distributions import draw_distributions
from roam_jax.viz.episodes import draw_episodes
from roam_jax.viz.window import WindowPicture, draw_window

EPISODES, FRAMES = 4, 8
# Instructions of a split that are drawn.
INSTRUCTIONS = 12
# Augmented versions of a window's frames.
AUGMENTED = 2
GOALS = {"last": "goal: the episode's end", "uniform": "goal: any later step"}


def draw_data(
    out: pathlib.Path,
    members: Sequence[Member],
    report: Mapping[str, Any],
    config: ml_collections.ConfigDict,
) -> Iterator[pathlib.Path]:
    """Writes the pictures into a folder and gives their paths.

    Args:
        out: the folder.
        members: the opened datasets.
        report: `summarise_members` under "members".
        config: the whole config.
    """
    splits = {
        f"{found['name']} {split}".strip(): figures
        for found in report["members"]
        for split, figures in found["splits"].items()
    }
    draw_lengths(out / "lengths.png", splits)
    yield out / "lengths.png"
    draw_left_out(out / "left_out.png", splits)
    yield out / "left_out.png"
    for member, found in zip(members, report["members"], strict=True):
        prefix = f"{file_name(member.name)}_" if member.name else ""
        yield from _draw_member(out, prefix, member, found, config)


def _draw_member(
    out: pathlib.Path,
    prefix: str,
    member: Member,
    found: Mapping[str, Any],
    config: ml_collections.ConfigDict,
) -> Iterator[pathlib.Path]:
    """Pictures of one dataset, OUT/PREFIX*.png."""
    about = member.name or found["splits"]["train"]["dataset"]
    statistics = found["statistics"]
    path = out / f"{prefix}episodes.png"
    draw_some_episodes(path, member.train)
    yield path
    read, every = statistics["sampled"]["train"], statistics["episodes"]
    note = "" if read == every else f"; histograms of {read:,} of them"
    for kind in ("actions", "states"):
        path, rows = out / f"{prefix}{kind}.png", statistics[kind]
        title = f"{about}: {rows['count']:,} {kind} of {every:,} train episodes{note}"
        draw_distributions(path, rows["dimensions"], title=title)
        yield path
    counts = {
        split: list(map(tuple, figures["instructions"]["frequent"][:INSTRUCTIONS]))
        for split, figures in found["splits"].items()
    }
    path = out / f"{prefix}instructions.png"
    draw_instructions(path, counts, title=f"{about}: the most frequent instructions")
    yield path
    path = out / f"{prefix}window.png"
    draw_one_window(path, member.train, config)
    yield path


def draw_some_episodes(path: pathlib.Path, source: WindowSource) -> None:
    """Strips of a few episodes in every camera, evenly spread over those that have frames."""
    reader = source.reader
    filmed = np.flatnonzero(reader.headers.steps)
    strips, titles, labels = [], [], []
    for number in filmed[spread_evenly(len(filmed), EPISODES)].tolist():
        episode = reader[number]
        steps = np.linspace(0, episode.header.steps - 1, FRAMES).round().astype(int).tolist()
        strips.append({c: episode.frames(steps, camera=c) for c in reader.cameras})
        instruction = episode.header.instruction or "(no instruction)"
        titles.append(f"{reader.split} episode {number}: {instruction}")
        seconds = [step / reader.declaration.rate for step in steps]
        labels.append([f"step {s}, {t:.3g} s" for s, t in zip(steps, seconds, strict=True)])
    draw_episodes(path, strips, titles=titles, labels=labels)


def draw_one_window(
    path: pathlib.Path, source: WindowSource, config: ml_collections.ConfigDict
) -> None:
    """The window in the middle of a split, with its time alignment."""
    window = source[len(source) // 2]
    strips = _strips(window, source.reader.cameras)
    first = next(iter(strips))
    goal = {first: window["goal_frame"][0]} if "goal_frame" in window else {}
    for number, augmented in enumerate(_augmented(window, config), start=1):
        for camera, frames in _strips(augmented, source.reader.cameras).items():
            strips[f"{camera}\naugmented {number}"] = frames
        if goal:
            goal[f"{first}\naugmented {number}"] = augmented["goal_frame"][0]
    # Beside the camera that they were made of.
    order = sorted(strips, key=lambda name: source.reader.cameras.index(name.split("\n")[0]))
    statistics, states = source.statistics, source.proprio_places
    proprio = np.concatenate([window["observed_proprio"], window["future_proprio"]])
    reward = np.concatenate([window["observed_reward"], window["future_reward"]])
    header = source.reader.headers[int(window["episode"])]
    draw_window(
        path,
        WindowPicture(
            strips={name: strips[name] for name in order},
            goal=goal,
            goal_label=GOALS.get(config.data.goal, ""),
            past_actions=window["past_actions"][:, source.action_places],
            action_chunk=window["action_chunk"][:, source.action_places],
            proprio=proprio[:, states],
            reward=reward[:, 0],
            action_names=statistics.actions.spec.names,
            proprio_names=statistics.proprio.spec.names,
            observed=source.options.time.observed_frames,
            rate=statistics.rate,
        ),
        title=f"{source.reader.split} episode {window['episode']}, from kept step "
        f"{window['start']}: {header.instruction or '(no instruction)'}",
    )


def _strips(window: Batch, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Camera -> frames."""
    return dict(zip(cameras, [window["frames"], *window.get("camera_frames", ())], strict=True))


def _augmented(window: Batch, config: ml_collections.ConfigDict) -> list[Batch]:
    """The window as training would see it in some steps; none where nothing is augmented."""
    augmentation = Augmentation.from_config(config)
    if not augmentation.changed:
        return []
    videos = {name: window[name] for name in VIDEO_FIELDS if name in window}
    batch = {name: jnp.stack([video] * AUGMENTED) for name, video in videos.items()}
    found = augmentation(batch, jax.random.key(config.seed))
    found = {name: np.asarray(found[name]) for name in videos}
    return [{name: rows[i] for name, rows in found.items()} for i in range(AUGMENTED)]
