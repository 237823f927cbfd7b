"""The canvas of a grafted CogVideoX: text, video, and new regions beside them.

Text and video cells are the backbone's own. New cells are a third group: latent frame k >= 1 owns
the four actions that lead to it, every latent frame a cell of robot state and one of reward, and
thought cells have no data at all and may run on a slower clock. Views are further videos: other
cameras, and a picture of the goal, each with as many cells a frame as the video. By default new
cells read everything and nothing of the backbone reads them, so the backbone's function is
untouched at initialisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.contracts import FRAMES_PER_LATENT, TimeSpec

BACKBONE_REGIONS = ("text", "visual")
PAST, FUTURE = "past_action", "future_action"
THOUGHT, GOAL = "thought", "goal"
OBSERVED_PREFIX, FUTURE_PREFIX = "observed_", "future_"
# What no camera may be called: its regions would be those of a stream, or of a stream's decoder.
_STREAMS = ("action", "proprio", "reward")
_RESERVED = (*_STREAMS, *(f"{stream}_decoder" for stream in _STREAMS))


@dataclasses.dataclass(frozen=True)
class NewRegions:
    """Which regions stand beside text and video, and how much their errors weigh.

    Args:
        actions: cells of past and future actions.
        proprio, reward: one cell a latent frame; frames from `t_current` on have cells where the
            weight is positive, to be predicted.
        thought_cells: learned cells without data or target of every thought frame.
        thought_period: latent frames between two thought frames.
        cameras: names of cameras beside the first, one region of observed frames each; and one of
            frames from `t_current` on where `camera_weight` is positive, to be predicted.
        goal: one frame of the first camera from later in the episode.
        action_weight, proprio_weight, reward_weight, camera_weight: loss weights of what is
            predicted.

    Raises:
        ValueError: a value is out of range, a weight has no region, or a camera's name is no
            identifier, that of another region's stream, or there twice.
    """

    actions: bool = True
    proprio: bool = False
    reward: bool = False
    thought_cells: int = 0
    thought_period: int = 1
    cameras: tuple[str, ...] = ()
    goal: bool = False
    action_weight: float = 1.0
    proprio_weight: float = 0.0
    reward_weight: float = 0.0
    camera_weight: float = 0.0

    def __post_init__(self):
        if self.thought_cells < 0:
            raise ValueError(f"canvas.thought_cells = {self.thought_cells}: expected at least 0")
        for name in ("proprio", "reward"):
            weight = getattr(self, f"{name}_weight")
            if weight and not getattr(self, name):
                raise ValueError(
                    f"canvas.{name}_weight = {weight} without a region: expected "
                    f"canvas.{name} = True"
                )
        for name in self.cameras:
            taken = name in _RESERVED or self.cameras.count(name) > 1
            if taken or not name.isidentifier():
                raise ValueError(
                    f"data.cameras has {name!r} beside the first: expected each camera once, a "
                    "name of letters, digits and underscores, and none that other regions have "
                    f"({', '.join(_RESERVED)})"
                )
        if self.camera_weight and not self.cameras:
            raise ValueError(
                f"canvas.camera_weight = {self.camera_weight} without a region: expected a second "
                "camera in data.cameras"
            )


def graft_layout(
    *,
    time: TimeSpec,
    rows: int,
    columns: int,
    width: int,
    text_length: int,
    visual_weight: float = 1.0,
    new: NewRegions = NewRegions(),
) -> CanvasLayout:
    """Regions in sequence order: text, visual, then the new ones.

    Args:
        time: window length and `t_current`.
        rows, columns: video tokens of a latent frame.
        width: width of a cell.
        text_length: text tokens.
        visual_weight: loss weight of the predicted video.
        new: the regions beside them.

    Returns:
        The layout; text lies below the video in frame 0, each new stream in a row of its own below
        the text, and views in as many rows as the video below these.

    Raises:
        ValueError: the thought period does not fit the window.
    """
    grid_width = max(columns, FRAMES_PER_LATENT, new.thought_cells)
    text_rows = -(-text_length // grid_width)
    regions = {
        "text": RegionSpec(
            (0, 1, rows, rows + text_rows, 0, grid_width), is_output=False, length=text_length
        ),
        "visual": RegionSpec((0, time.latents, 0, rows, 0, columns), loss_weight=visual_weight),
    }
    regions |= _new_regions(new, time, first_row=rows + text_rows)
    first_row = max(spec.bounds[3] for spec in regions.values())
    regions |= _views(new, time, first_row=first_row, size=(rows, columns))
    return CanvasLayout(
        T=time.latents,
        H=max(spec.bounds[3] for spec in regions.values()),
        W=grid_width,
        d_model=width,
        regions=regions,
        t_current=time.t_current,
    )


def _new_regions(new: NewRegions, time: TimeSpec, *, first_row: int) -> dict[str, RegionSpec]:
    """Observed and predicted part of every stream, each stream in a row of its own."""
    regions: dict[str, RegionSpec] = {}
    row = first_row

    def add(name: str, t0: int, t1: int, cells: int, **options) -> None:
        regions[name] = RegionSpec((t0, t1, row, row + 1, 0, cells), **options)

    now, end = time.t_current, time.latents
    if new.actions:
        if time.past_actions:
            add(PAST, 1, now, FRAMES_PER_LATENT, is_output=False)
        add(FUTURE, now, end, FRAMES_PER_LATENT, loss_weight=new.action_weight)
        row += 1
    for name in ("proprio", "reward"):
        if getattr(new, name):
            add(f"observed_{name}", 0, now, 1, is_output=False)
            if weight := getattr(new, f"{name}_weight"):
                add(f"future_{name}", now, end, 1, loss_weight=weight)
            row += 1
    period = new.thought_period
    if not 1 <= period <= time.latents:
        raise ValueError(
            f"canvas.thought_period = {period}: expected 1..{time.latents}, the latent frames of "
            "the window"
        )
    if new.thought_cells:
        frames = -(-time.latents // period)
        add(THOUGHT, 0, frames, new.thought_cells, period=period, is_output=False)
    return regions


def _views(
    new: NewRegions, time: TimeSpec, *, first_row: int, size: tuple[int, int]
) -> dict[str, RegionSpec]:
    """Observed and predicted part of every camera, and the goal; `size` is rows and columns."""
    regions: dict[str, RegionSpec] = {}
    (rows, columns), row = size, first_row

    def add(name: str, t0: int, t1: int, **options) -> None:
        regions[name] = RegionSpec((t0, t1, row, row + rows, 0, columns), **options)

    for camera in new.cameras:
        add(f"{OBSERVED_PREFIX}{camera}", 0, time.t_current, is_output=False)
        if weight := new.camera_weight:
            add(f"{FUTURE_PREFIX}{camera}", time.t_current, time.latents, loss_weight=weight)
        row += rows
    if new.goal:
        add(GOAL, 0, 1, is_output=False)
    return regions


def camera_regions(layout: CanvasLayout) -> dict[str, tuple[str, ...]]:
    """Camera beside the first -> its regions by time: the observed one, and the predicted one."""
    cameras: dict[str, tuple[str, ...]] = {}
    for name in layout.regions:
        for prefix in (OBSERVED_PREFIX, FUTURE_PREFIX):
            camera = name.removeprefix(prefix)
            if camera != name and camera not in _STREAMS:
                cameras[camera] = (*cameras.get(camera, ()), name)
    return cameras


def view_regions(layout: CanvasLayout) -> list[tuple[str, ...]]:
    """Regions whose cells are patches, those of one video together: each camera, the goal."""
    goal = [(GOAL,)] if GOAL in layout.regions else []
    return [*camera_regions(layout).values(), *goal]


def latent_frames(
    layout: CanvasLayout, regions: Iterable[str] | None = None
) -> Int[np.ndarray, " N"]:
    """Latent frame of every cell, in sequence order: canvas frame x period.

    Args:
        layout: from `graft_layout`.
        regions: whose cells; None = all but the text's.
    """
    names = [name for name in layout.regions if name != "text"] if regions is None else regions
    frames = [
        layout.region_indices(name) // (layout.H * layout.W) * layout.region_spec(name).period
        for name in names
    ]
    return np.concatenate(frames).astype(np.int32)


def graft_topology(layout: CanvasLayout, *, backbone_reads_new: float = 0.0) -> CanvasTopology:
    """new -> {visual, text, new}; the backbone's regions read each other and themselves.

    Args:
        layout: from `graft_layout`.
        backbone_reads_new: weight of backbone -> new edges. Above 0 the grafted model no longer
            equals the backbone at initialisation; a small weight bounds the change.
    """
    new = [name for name in layout.regions if name not in BACKBONE_REGIONS]
    edges = [Connection(s, d) for s in BACKBONE_REGIONS for d in BACKBONE_REGIONS]
    edges += [Connection(s, d) for s in new for d in layout.regions]
    if backbone_reads_new:
        edges += [
            Connection(s, d, weight=backbone_reads_new) for s in BACKBONE_REGIONS for d in new
        ]
    return CanvasTopology(tuple(edges))
