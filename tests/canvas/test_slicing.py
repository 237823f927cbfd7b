"""A sliced stack gives the same outputs, and keeps nothing that it could do without."""

import itertools
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.slicing import slice_canvas
from roam_jax.canvas.temporal_topologies import causal
from roam_jax.canvas.topologies import central_thought
from roam_jax.canvas.topology import CanvasTopology, segment_keys
from tests.canvas.canvases import allowed, edges, influences, layouts, places, sequence

WIDTH = 3


def attend(queries: np.ndarray, keys: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Masked softmax attention in float64, 0 for a query without keys."""
    scores = weights * np.exp(queries @ keys.T / np.sqrt(WIDTH))
    total = scores.sum(axis=1, keepdims=True)
    return scores @ keys / np.where(total > 0, total, 1)


@st.composite
def canvases(draw):
    layout = draw(layouts(lengths=True))
    topology = CanvasTopology(tuple(draw(edges(layout, pairs=True))))
    wanted = []
    names = draw(st.lists(st.sampled_from(list(layout.regions)), min_size=1, unique=True))
    for name in names:
        frames = st.lists(st.sampled_from(layout.regions[name].frames), min_size=1)
        some = draw(st.none() | frames)
        wanted.append(name if some is None else (name, some))
    return layout, topology, wanted, draw(st.integers(1, 6))


def without_disabled(topology: CanvasTopology, layout: CanvasLayout) -> CanvasTopology:
    return CanvasTopology(
        tuple(e for e in topology.connections if topology.resolve_fn(e, layout) != "none")
    )


@settings(max_examples=100, deadline=None)
@given(canvases())
def test_outputs_equal_those_of_the_whole_canvas(canvas):
    layout, topology, wanted, applications = canvas
    sliced = slice_canvas(topology, layout, wanted, applications=applications)
    cells = sequence(layout)
    mask = without_disabled(topology, layout).to_attention_mask(layout)[np.ix_(cells, cells)]
    mask = mask.astype(np.float64)
    generator = np.random.default_rng(0)
    blocks = generator.normal(size=(applications, WIDTH, WIDTH))
    whole = generator.normal(size=(len(cells), WIDTH))
    state = whole[sliced.cells(0)]
    for i, block in enumerate(blocks):
        whole = whole + attend(whole @ block, whole, mask)
        rows, columns = sliced.cells(i + 1), sliced.cells(i)
        queries = state[sliced.cells_within(i)]
        state = queries + attend(queries @ block, state, mask[np.ix_(rows, columns)])
    np.testing.assert_allclose(state, whole[sliced.cells(applications)], rtol=1e-12, atol=1e-13)


@settings(max_examples=100, deadline=None)
@given(canvases())
def test_sets_are_minimal_and_what_remains_is_counted(canvas):
    layout, topology, wanted, applications = canvas
    sliced = slice_canvas(topology, layout, wanted, applications=applications)
    assert sliced == slice_canvas(topology, layout, wanted, applications=applications)
    assert hash(sliced) == hash(slice_canvas(topology, layout, wanted, applications=applications))
    assert sliced.applications == applications and len(sliced.kept) == applications + 1
    reads = allowed(without_disabled(topology, layout), layout)
    frames = sequence(layout) // (layout.H * layout.W)
    names, _ = places(layout)
    outputs = np.zeros(len(names), bool)
    for want in wanted:
        name, some = (want, layout.regions[want].frames) if isinstance(want, str) else want
        outputs |= (names == name) & np.isin(frames, list(some))

    keys, kept = segment_keys(layout), []
    for i in range(applications + 1):
        needed = influences(reads, applications - i)[outputs].any(axis=0)
        kept.append(needed)
        np.testing.assert_array_equal(sliced.cells(i), np.flatnonzero(needed))
        assert sliced.cells(i).dtype == np.int64
        expected = {(names[cell], frames[cell]) for cell in np.flatnonzero(needed)}
        assert sliced.kept[i] == tuple(n for n, key in enumerate(keys) if key in expected)
    same = [(a == b).all() for a, b in itertools.pairwise(kept)]
    assert same == [True] * sliced.steady + [False] * (applications - sliced.steady)
    assert sliced.computed_share == pytest.approx(np.mean([needed.mean() for needed in kept[1:]]))
    pairs = np.mean([reads[needed].sum() for needed in kept[1:]]) / max(reads.sum(), 1)
    assert sliced.pair_share == pytest.approx(pairs if reads.any() else 1)


def test_the_next_actions_alone_need_less_and_less():
    regions = {
        "video": (0, 13, 0, 4, 0, 4),
        "action": (1, 13, 4, 5, 0, 4),
        "thought": (0, 1, 5, 6, 0, 4),
    }
    layout = CanvasLayout(13, 6, 4, d_model=4, regions=regions)
    topology = central_thought(layout, streams=["video", "action"], thought="thought")
    sliced = slice_canvas(topology, layout, [("action", range(6, 8))], applications=90)
    sizes = [len(sliced.cells(i)) for i in range(91)]
    # Two frames; all actions and the thought one application before; everything two before.
    assert sizes == [13 * 16 + 12 * 4 + 4] * 89 + [12 * 4 + 4] + [2 * 4]
    assert sliced.steady == 88
    assert sliced.computed_share == pytest.approx((88 * 260 + 52 + 8) / (90 * 260))


def test_ninety_applications_are_planned_at_once():
    regions = {f"r{i}": RegionSpec((0, 13, i, i + 1, 0, 9), period=1 + i % 2) for i in range(13)}
    layout = CanvasLayout(13, 13, 9, d_model=4, regions=regions)
    topology = causal(layout, window=2)
    start = time.perf_counter()
    sliced = slice_canvas(topology, layout, ["r0"], applications=90)
    assert time.perf_counter() - start < 0.5
    assert 80 < sliced.steady < 90 and len({id(kept) for kept in sliced.kept}) <= 11


LAYOUT = CanvasLayout(
    4, 1, 2, d_model=4, regions={"video": RegionSpec((0, 4, 0, 1, 0, 2), length=5)}
)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ([], "wanted []: nothing is wanted"),
        (["vidoe"], "unknown region 'vidoe': did you mean 'video'"),
        ([("video", [])], "wanted: no canvas frames of region 'video': expected at least one"),
        (
            [("video", [1, 3])],
            "wanted: region 'video' has no tokens in canvas frame 3: expected 0..2",
        ),
        ("video", "wanted 'video': expected a list of regions"),
        ([("video", 1)], "wanted: region 'video': 1: expected a list of canvas frames"),
    ],
)
@pytest.mark.usefixtures("no_annotation_checks")
def test_a_slice_that_wants_what_is_not_there_is_refused(wanted, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        slice_canvas(CanvasTopology.dense(["video"]), LAYOUT, wanted, applications=1)


def test_a_slice_of_no_applications_is_refused():
    with pytest.raises(ValueError, match="applications 0: expected at least 1"):
        slice_canvas(CanvasTopology.dense(["video"]), LAYOUT, ["video"], applications=0)
