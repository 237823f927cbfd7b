"""Pictures of a canvas: cells, boxes, frames and periods are read back from the axes."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.viz import figure as figures
from roam_jax.viz.canvas import EMPTY, draw_layout, region_colours
from tests.viz.pixels import has_colour, pixels


def layout(**changes) -> CanvasLayout:
    fields = dict(
        T=2,
        H=3,
        W=4,
        d_model=8,
        regions={
            "visual": (0, 2, 0, 2, 0, 4),
            "text": RegionSpec((0, 1, 2, 3, 0, 4), length=3),
        },
        t_current=1,
    )
    return CanvasLayout(**{**fields, **changes})


def test_each_cell_has_the_colour_of_its_region(tmp_path, drawn):
    canvas = layout()
    draw_layout(tmp_path / "l.png", canvas)
    grids = np.array([axes.collections[0].get_array() for axes in drawn])
    expected = np.zeros(24)
    expected[canvas.region_indices("visual")] = 1
    expected[canvas.region_indices("text")] = 2
    np.testing.assert_array_equal(grids, expected.reshape(2, 3, 4))
    assert [axes.get_title().split("\n")[1] for axes in drawn] == ["observed", "predicted"]
    image = pixels(tmp_path / "l.png")
    assert has_colour(image, figures.SERIES[0]) and has_colour(image, figures.SERIES[1])


def test_cells_without_tokens_are_hatched_and_no_others(tmp_path, drawn):
    regions = {
        "visual": (0, 2, 0, 1, 0, 4),
        "text": RegionSpec((0, 2, 1, 3, 0, 4), length=3),
    }
    draw_layout(tmp_path / "l.png", layout(regions=regions))
    hatched = [
        [(*box.get_xy(), box.get_width(), box.get_height()) for box in axes.patches]
        for axes in drawn
    ]
    assert hatched == [[(3, 1, 1, 1), (0, 2, 4, 1)], [(0, 1, 4, 1), (0, 2, 4, 1)]]
    assert all(box.get_hatch() for axes in drawn for box in axes.patches)


def test_slow_regions_say_their_real_frames(tmp_path, drawn):
    regions = {"visual": (0, 5, 0, 2, 0, 4), "thought": RegionSpec((0, 2, 2, 3, 0, 2), period=4)}
    draw_layout(tmp_path / "l.png", layout(T=5, regions=regions))
    below = [axes.get_xlabel() for axes in drawn]
    assert below == ["thought: real frame 0", "thought: real frame 4", "", "", ""]


def test_many_frames_are_wrapped_to_the_page(tmp_path, drawn):
    regions = {"visual": (0, 13, 0, 30, 0, 45)}
    draw_layout(tmp_path / "l.png", layout(T=13, H=30, W=45, regions=regions))
    _, width, _ = pixels(tmp_path / "l.png").shape
    assert width <= 12.5 * figures.DPI
    assert len([axes for axes in drawn if axes.collections]) == 13


def lab(colours: list[str]) -> np.ndarray:
    """CIELAB of sRGB colours under D65, in which 2.3 is a just noticeable difference."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(linear @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("count, least", [(7, 24), (12, 24), (24, 15)])
def test_colours_of_regions_are_far_apart_and_from_empty_cells(count, least):
    regions = {f"r{i}": (0, 1, 0, 1, i, i + 1) for i in range(count)}
    colours = list(region_colours(layout(T=1, H=1, W=count, regions=regions)).values())
    assert colours[:7] == [colour.lower() for colour in figures.SERIES]
    places = lab([*colours, EMPTY])
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    assert distances[~np.eye(count + 1, dtype=bool)].min() > least


@pytest.mark.parametrize("T, H, W", [(6, 12, 3), (13, 30, 45), (1, 12, 1), (2, 3, 4)])
def test_texts_are_whole_and_apart(tmp_path, texts, T, H, W):
    regions = {
        "visual": (0, T, 0, H - 2, 0, W),
        "slow_thoughts": RegionSpec((0, -(-T // 2), H - 2, H - 1, 0, W), period=2),
        "goal": RegionSpec((0, -(-T // 3), H - 1, H, 0, W), period=3),
    }
    draw_layout(tmp_path / "l.png", layout(T=T, H=H, W=W, regions=regions))
    assert any("slow_thoughts: real frame 0" in text for text in texts.boxes)
    texts.require_legible()
