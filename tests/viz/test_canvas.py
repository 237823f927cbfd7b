"""Pictures of a canvas: cells, boxes, frames and periods are read back from the axes."""

import numpy as np

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.viz import figure as figures
from roam_jax.viz.canvas import draw_layout, region_colours
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


def test_a_box_with_fewer_tokens_is_hatched(tmp_path, drawn):
    draw_layout(tmp_path / "l.png", layout())
    (box,) = drawn[0].patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (0, 2, 4, 1)
    assert box.get_hatch() and not drawn[1].patches


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


def test_twelve_regions_have_twelve_colours():
    regions = {f"r{i}": (0, 1, 0, 1, i, i + 1) for i in range(21)}
    colours = region_colours(layout(T=1, H=1, W=21, regions=regions))
    assert len(set(colours.values())) == 21
    assert list(colours.values())[:7] == [colour.lower() for colour in figures.SERIES]
