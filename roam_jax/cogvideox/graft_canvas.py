"""The canvas of a grafted CogVideoX: text, video, and the action cells beside them.

Text and video cells are the backbone's own. Action cells are new: latent frame k >= 1 owns the four
actions that lead to it, past ones before `t_current`, future ones from there on. By default new
cells read everything and nothing of the backbone reads them, so the backbone's function is
untouched at initialisation.
"""

from __future__ import annotations

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.contracts import FRAMES_PER_LATENT, TimeSpec

BACKBONE_REGIONS = ("text", "visual")
PAST, FUTURE = "past_action", "future_action"


def graft_layout(
    *,
    time: TimeSpec,
    rows: int,
    columns: int,
    width: int,
    text_length: int,
    visual_weight: float = 1.0,
    action_weight: float = 1.0,
    action_cells: bool = True,
) -> CanvasLayout:
    """Regions in sequence order: text, visual, then past and future actions where they exist.

    Args:
        time: window length and `t_current`.
        rows, columns: video tokens of a latent frame.
        width: width of a cell.
        text_length: text tokens.
        visual_weight, action_weight: loss weights of the two predicted regions.
        action_cells: whether the canvas has action cells (the `pooled` decoder needs none).

    Returns:
        The layout; text lies below the video in frame 0, actions in the row below it.
    """
    grid_width = max(columns, FRAMES_PER_LATENT)
    text_rows = -(-text_length // grid_width)
    action_row = rows + text_rows
    regions = {
        "text": RegionSpec(
            (0, 1, rows, action_row, 0, grid_width), is_output=False, length=text_length
        ),
        "visual": RegionSpec((0, time.latents, 0, rows, 0, columns), loss_weight=visual_weight),
    }
    cells = (action_row, action_row + 1, 0, FRAMES_PER_LATENT)
    if action_cells and time.past_actions:
        regions[PAST] = RegionSpec((1, time.t_current, *cells), is_output=False)
    if action_cells:
        regions[FUTURE] = RegionSpec(
            (time.t_current, time.latents, *cells), loss_weight=action_weight
        )
    return CanvasLayout(
        T=time.latents,
        H=action_row + 1,
        W=grid_width,
        d_model=width,
        regions=regions,
        t_current=time.t_current,
    )


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
