"""Pictures of masks, plans and slices: pixels against the arrays that they stand for."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.slicing import slice_canvas
from roam_jax.canvas.topologies import central_thought, local_plus_sparse_global
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_keys
from roam_jax.viz import figure as figures
from roam_jax.viz.canvas import EMPTY, region_colours
from roam_jax.viz.cells import PIXELS, spread
from roam_jax.viz.mask import draw_mask
from roam_jax.viz.plan import HIDDEN, draw_plan
from roam_jax.viz.slice import draw_slice
from tests.canvas.canvases import allowed
from tests.viz.pixels import has_colour, pixels

SMALL = CanvasLayout(
    T=4,
    H=3,
    W=5,
    d_model=8,
    regions={
        "video": (0, 4, 0, 2, 0, 5),
        "action": RegionSpec((0, 4, 2, 3, 0, 2), length=7),
        "thought": RegionSpec((0, 2, 2, 3, 2, 5), period=2),
    },
)


def video(rows: int, frames: int = 8) -> CanvasLayout:
    regions = {
        "video": (0, frames, 0, rows, 0, 16),
        "action": (0, frames, rows, rows + 1, 0, 4),
        "thought": RegionSpec((0, frames // 2, rows, rows + 1, 4, 16), period=2),
    }
    return CanvasLayout(T=frames, H=rows + 1, W=16, d_model=8, regions=regions)


def coloured(share: np.ndarray, colour: str) -> np.ndarray:
    return 1 - share[..., None] * (1 - np.array(to_rgb(colour)))


def shown(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def legend(axes) -> dict[str, str]:
    (box,) = axes.figure.legends
    patches = zip(box.get_patches(), box.get_texts(), strict=True)
    return {text.get_text(): patch.get_facecolor() for patch, text in patches}


def test_a_pixel_a_pair_where_there_is_room(tmp_path, drawn):
    topology = CanvasTopology.causal_temporal(list(SMALL.regions)).matching(SMALL)
    draw_mask(tmp_path / "m.png", SMALL, topology)
    mask = allowed(topology, SMALL).astype(float)
    np.testing.assert_allclose(shown(drawn[0]), coloured(mask, figures.SERIES[0]), atol=1e-12)
    assert drawn[0].images[0].get_extent() == [0, 53, 53, 0]
    assert has_colour(pixels(tmp_path / "m.png"), figures.SERIES[0])
    (title,) = drawn[0].figure.texts
    assert title.get_text() == f"53 cells; {mask.mean():.1%} of the pairs are allowed"


def test_larger_masks_are_averaged(tmp_path, drawn):
    layout = video(15)
    topology = CanvasTopology.causal_temporal(["video", "action", "thought"]).matching(layout)
    draw_mask(tmp_path / "m.png", layout, topology)
    mask = allowed(topology, layout).astype(np.float64)
    # The pixel of a cell is that of its middle.
    edges = np.searchsorted((np.arange(len(mask)) + 0.5) * PIXELS / len(mask), np.arange(PIXELS))
    mean = np.add.reduceat(np.add.reduceat(mask, edges, axis=0), edges, axis=1)
    counts = np.diff([*edges, len(mask)])
    mean /= np.outer(counts, counts)
    assert len(mask) == 2000 and set(counts) == {3, 4}
    np.testing.assert_allclose(shown(drawn[0]), coloured(mean, figures.SERIES[0]), atol=1e-12)


def test_a_mask_of_any_size_is_512_pixels(tmp_path, drawn):
    layout = video(1023)
    draw_mask(tmp_path / "m.png", layout, CanvasTopology.isolated(list(layout.regions)))
    assert shown(drawn[0]).shape == (PIXELS, PIXELS, 3)
    borders = [line.get_xdata() for line in drawn[0].get_lines() if line.get_linewidth() == 0.5]
    across = {places[0] for places in borders if len(set(places)) == 1}
    assert {0, 8 * 1023 * 16, 8 * 1023 * 16 + 8 * 4} <= across


def test_other_kinds_have_colours_of_their_own(tmp_path, drawn):
    edges = (
        Connection("video", "video"),
        Connection("video", "thought", fn="gated"),
        Connection("action", "video"),
        Connection("action", "video", fn="mamba", pairs=((0, 0),)),
        Connection("thought", "video", fn="none"),
    )
    draw_mask(tmp_path / "m.png", SMALL, CanvasTopology(edges))
    blue, first, second = figures.SERIES[:3]
    names = legend(drawn[0])
    assert list(names) == ["softmax attention", "gated", "mamba"]
    assert [colour[:3] for colour in names.values()] == [to_rgb(c) for c in (blue, first, second)]
    image = shown(drawn[0])
    video, action, thought = slice(0, 40), slice(40, 47), slice(47, 53)
    for rows, columns, colour in (
        (video, video, blue),
        (video, thought, first),
        (slice(40, 42), slice(0, 10), second),
        (slice(42, 47), video, blue),
        (action, action, "white"),
        (thought, slice(0, 53), "white"),
    ):
        np.testing.assert_allclose(image[rows, columns] - np.array(to_rgb(colour)), 0, atol=1e-12)


def test_a_plan_shows_what_is_used_and_what_is_hidden(tmp_path, drawn):
    layout = video(15)
    topology = local_plus_sparse_global(layout, frames=1, links=2, seed=0)
    plan = compile_plan(layout, topology)
    assert not plan.is_dense and plan.scores > plan.pairs
    draw_plan(tmp_path / "p.png", layout, plan)
    draw_mask(tmp_path / "m.png", layout, topology)
    image, mask = shown(drawn[0]), shown(drawn[1])
    # White is what no tile computes: what is allowed is covered by a colour of a stack or grey.
    np.testing.assert_array_equal(((mask < 1).any(-1) & (image == 1).all(-1)), False)
    names = legend(drawn[0])
    assert list(names)[-1] == HIDDEN and len(names) == len(plan.stacks) + 1
    assert len(set(names.values())) == len(names)
    (title,) = drawn[0].figure.texts
    assert title.get_text().startswith(f"{plan.scores / 2000**2:.1%} of the scores are computed")
    assert f", in {len(plan.stacks)} loops" in title.get_text()


def test_where_nothing_is_hidden_a_plan_is_its_mask(tmp_path, drawn):
    layout = video(15)
    topology = central_thought(layout, streams=["video", "action"], thought="thought")
    plan = compile_plan(layout, topology)
    draw_plan(tmp_path / "p.png", layout, plan)
    draw_mask(tmp_path / "m.png", layout, topology)
    plane, mask = (shown(axes) for axes in drawn)
    assert HIDDEN not in legend(drawn[0])
    np.testing.assert_array_equal((plane < 1 - 1e-9).any(-1), (mask < 1 - 1e-9).any(-1))


def test_a_dense_plan_hides_what_is_not_allowed(tmp_path, drawn):
    topology = CanvasTopology.isolated(list(SMALL.regions))
    plan = compile_plan(SMALL, topology)
    assert plan.is_dense
    draw_plan(tmp_path / "p.png", SMALL, plan)
    mask = allowed(topology, SMALL).astype(float)
    expected = coloured(mask, figures.SERIES[0]) + coloured(1 - mask, figures.FAINT) - 1
    np.testing.assert_allclose(shown(drawn[0]), expected, atol=1e-12)


def test_a_plan_of_a_slice_has_fewer_queries_than_keys(tmp_path, drawn, texts):
    chain = CanvasTopology.causal_chain(list(SMALL.regions))
    plan = compile_plan(SMALL, chain, queries=(4, 5, 6, 7), keys=(0, 1, 2, 3, 4, 5, 6, 7))
    draw_plan(tmp_path / "p.png", SMALL, plan)
    assert shown(drawn[0]).shape == (7, 47, 3)
    texts.require_legible()


def test_edges_of_other_kinds_are_part_of_the_plan(tmp_path, drawn):
    edges = (Connection("video", "video"), Connection("action", "video", fn="gated"))
    plan = compile_plan(SMALL, CanvasTopology(edges))
    draw_plan(tmp_path / "p.png", SMALL, plan)
    colour = legend(drawn[0])["gated"][:3]
    np.testing.assert_allclose(shown(drawn[0])[40:47, :40] - np.array(colour), 0, atol=1e-12)


def test_without_edges_all_is_white(tmp_path, drawn):
    nothing = CanvasTopology(())
    draw_mask(tmp_path / "m.png", SMALL, nothing)
    draw_plan(tmp_path / "p.png", SMALL, compile_plan(SMALL, nothing))
    for axes in drawn:
        np.testing.assert_array_equal(shown(axes), np.ones((53, 53, 3)))
        assert not axes.figure.legends


def test_a_slice_shows_what_is_kept_before_every_application(tmp_path, drawn):
    chain = CanvasTopology.causal_chain(["video", "thought", "action"])
    sliced = slice_canvas(chain, SMALL, ["action"], applications=4)
    draw_slice(tmp_path / "s.png", SMALL, sliced)
    image, keys = shown(drawn[0]), segment_keys(SMALL)
    colours = region_colours(SMALL)
    assert image.shape == (len(keys), 5, 3)
    for state, kept in enumerate(sliced.kept):
        for number, (name, _) in enumerate(keys):
            colour = colours[name] if number in kept else EMPTY
            np.testing.assert_allclose(image[number, state], to_rgb(colour))
    wanted, shares = drawn[0].figure.texts[0].get_text().split("\n")
    assert wanted == "wanted: action" and f"{sliced.computed_share:.1%} of the cells" in shares


@pytest.mark.parametrize(
    "places, expected",
    [
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.99, 1.0], [0.05, 0.85, 0.95]),
        ([0.5, 0.52, 0.54], [0.42, 0.52, 0.62]),
    ],
)
def test_names_move_apart_as_little_as_may_be(places, expected):
    np.testing.assert_allclose(spread(places, gap=0.1), expected, atol=1e-12)


def many(count: int) -> CanvasLayout:
    regions = {f"region_{i}": (0, 2, i, i + 1, 0, 4) for i in range(count)}
    regions["large"] = (0, 2, count, count + 60, 0, 4)
    return CanvasLayout(T=2, H=count + 60, W=4, d_model=8, regions=regions)


@pytest.mark.parametrize("layout", [SMALL, video(15), many(1), many(12), many(40)])
def test_texts_are_whole_and_apart(tmp_path, texts, layout):
    topology = CanvasTopology.causal_temporal(list(layout.regions)).matching(layout)
    sliced = slice_canvas(topology, layout, list(layout.regions)[-1:], applications=3)
    plan = compile_plan(layout, topology)
    for draw, what in ((draw_mask, topology), (draw_plan, plan), (draw_slice, sliced)):
        texts.boxes.clear()
        draw(tmp_path / "p.png", layout, what)
        texts.require_legible()
