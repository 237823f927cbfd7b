"""Pictures of a topology: arrows and labels are read back from the axes."""

import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.contracts import TimeSpec
from roam_jax.viz.edge_times import shown_frames
from roam_jax.viz.edges import edge_label, offset_label
from roam_jax.viz.topology import draw_topology

LAYOUT = CanvasLayout(
    T=4,
    H=3,
    W=2,
    d_model=8,
    regions={
        "video": (0, 4, 0, 1, 0, 2),
        "action": (0, 4, 1, 2, 0, 2),
        "thought": RegionSpec((0, 2, 2, 3, 0, 2), period=2),
    },
)


@pytest.mark.parametrize(
    "t_src, t_dst, label",
    [
        (None, None, "all frames"),
        (0, 0, "t reads t"),
        (0, -1, "t reads t-1"),
        (1, 2, "t+1 reads t+2"),
        (0, None, "t reads all"),
        (None, 2, "all reads t+2"),
    ],
)
def test_offsets_in_words(t_src, t_dst, label):
    assert offset_label(t_src, t_dst) == label


def test_edges_in_words():
    assert edge_label(Connection("a", "b", weight=0.5)) == "all frames, weight 0.5"
    assert edge_label(Connection("a", "b", t_src=0, t_dst=-1)) == "t reads t-1, hold"
    assert edge_label(Connection("a", "b"), runs=False) == "none, all frames"


def arrows(axes, style=None):
    """(from, to, style) of the arrows between two places."""
    return [
        (tuple(note.xyann), tuple(note.xy), note.arrowprops["arrowstyle"])
        for note in axes.texts
        if getattr(note, "arrow_patch", None) and style in (None, note.arrowprops["arrowstyle"])
    ]


def test_a_graph_without_offsets(tmp_path, drawn):
    edges = [("video", "video"), ("action", "video"), ("action", "thought"), ("thought", "action")]
    topology = CanvasTopology(tuple(Connection(s, d) for s, d in edges))
    draw_topology(tmp_path / "t.png", LAYOUT, topology)
    graph, table = drawn
    # One mutual pair, one arrow, one loop.
    assert len(arrows(graph, "<|-|>")) == 1 and len(arrows(graph, "-|>")) == 2
    nodes = [tuple(line.get_xydata()[0]) for line in graph.get_lines()]
    start, end = next(a[:2] for a in arrows(graph, "-|>") if a[0] != a[1])
    assert [nodes.index(start), nodes.index(end)] == [1, 0]  # from the reader to the read
    sizes = [line.get_markersize() for line in graph.get_lines()]
    assert sizes[0] == sizes[1] > sizes[2]
    shares = table.collections[0].get_array().reshape(3, 3)
    assert shares.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    labels = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in table.texts}
    assert labels == {(a + 0.5, b + 0.5): "all" for a, b in [(0, 0), (1, 0), (1, 2), (2, 1)]}


def test_offsets_lie_along_real_time(tmp_path, drawn):
    edges = (
        Connection("video", "video"),
        Connection("video", "action", t_src=0, t_dst=-1, weight=0.5),
        Connection("action", "thought", t_src=0, t_dst=0),
    )
    draw_topology(tmp_path / "t.png", LAYOUT, CanvasTopology(edges))
    _, table, time = drawn
    assert [line.get_xdata().tolist() for line in time.get_lines()[:3]] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 2],
    ]
    # The middle reader: video at 2 reads action at 1; action at 1 reads the thought held since 0.
    assert [a[:2] for a in arrows(time)] == [((2, 0), (1, 1)), ((1, 1), (0, 2))]
    texts = [text.get_text() for text in table.texts]
    assert texts == ["all", "t-1\nx 0.5", "t"]


def test_several_edges_of_a_pair_bend_apart(tmp_path, drawn):
    edges = tuple(Connection("video", "action", t_src=0, t_dst=-n) for n in range(3))
    draw_topology(tmp_path / "t.png", LAYOUT, CanvasTopology(edges))
    bends = {
        note.arrowprops["connectionstyle"]
        for note in drawn[0].texts
        if getattr(note, "arrow_patch", None)
    }
    assert len(bends) == 3


def test_disabled_edges_are_dashed_and_called_none(tmp_path, drawn):
    edges = (
        Connection("video", "action", fn="none"),
        Connection("video", "thought", t_src=0, t_dst=0, fn="none"),
        Connection("action", "video", t_src=0, t_dst=-1),
    )
    draw_topology(tmp_path / "t.png", LAYOUT, CanvasTopology(edges))
    graph, table, time = drawn
    styles = {
        tuple(note.xyann): note.arrowprops["linestyle"]
        for note in graph.texts
        if getattr(note, "arrow_patch", None)
    }
    video, action, _ = (tuple(line.get_xydata()[0]) for line in graph.get_lines())
    assert styles == {video: "--", action: "-"}
    assert [text.get_text() for text in table.texts] == ["all: none", "t: none", "t-1"]
    assert not table.collections[0].get_array()[0].any()
    assert sorted(note.arrowprops["linestyle"] for note in time.texts) == ["-", "--"]
    lines = {
        text.get_text(): line.get_linestyle()
        for line, text in zip(
            graph.figure.legends[0].get_lines(), graph.figure.legends[0].get_texts(), strict=True
        )
    }
    assert lines == {
        "none, all frames": "--", "none, t reads t, hold": "--", "t reads t-1, hold": "-",
    }  # fmt: skip


def test_all_edges_of_a_reader_are_shown_at_one_frame(tmp_path, drawn):
    regions = {"fast": (0, 6, 0, 1, 0, 2), "slow": RegionSpec((0, 2, 1, 2, 0, 2), period=3)}
    layout = CanvasLayout(T=6, H=2, W=2, d_model=8, regions=regions)
    edges = (
        Connection("fast", "fast", t_src=0, t_dst=-1),  # read from frames 1..5
        Connection("fast", "slow", t_src=0, t_dst=0, temporal_fill=TemporalFill.DROP),  # 0, 3
    )
    assert shown_frames(edges[:1], layout) == {"fast": 3}
    assert shown_frames(edges[1:], layout) == {"fast": 0}
    assert shown_frames(edges, layout) == {"fast": 3}
    draw_topology(tmp_path / "t.png", layout, CanvasTopology(edges))
    time = drawn[2]
    rings = [line for line in time.get_lines() if line.get_markerfacecolor() == "none"]
    assert [line.get_xydata().tolist() for line in rings] == [[[3, 0]]]
    assert [a[:2] for a in arrows(time)] == [((3, 0), (2, 0)), ((3, 0), (3, 1))]


def graft(**new) -> tuple[CanvasLayout, CanvasTopology]:
    layout = graft_layout(
        time=TimeSpec(9, 2), rows=4, columns=4, width=32, text_length=1, new=NewRegions(**new)
    )
    return layout, graft_topology(layout)


def rows_of(count: int) -> CanvasLayout:
    regions = {f"region_{i}": (0, 4, i, i + 1, 0, 4) for i in range(count)}
    return CanvasLayout(T=4, H=count, W=4, d_model=8, regions=regions)


CANVASES = {
    "tiny": graft(),
    "every region": graft(
        proprio=True, proprio_weight=0.5, reward=True, reward_weight=0.1, thought_cells=4
    ),
    **{
        f"{count} causal": (layout, CanvasTopology.causal_temporal(list(layout.regions)))
        for count in (1, 4, 12)
        for layout in [rows_of(count)]
    },
    "12 dense": (rows_of(12), CanvasTopology.dense(list(rows_of(12).regions))),
    "many ways": (
        LAYOUT,
        CanvasTopology(
            tuple(
                Connection("video", "action", t_src=0, t_dst=-n, weight=0.125 * n)
                for n in range(1, 6)
            )
        ),
    ),
    "no edges": (LAYOUT, CanvasTopology(())),
}


@pytest.mark.parametrize("name", CANVASES)
def test_texts_are_whole_and_apart(tmp_path, texts, name):
    draw_topology(tmp_path / "t.png", *CANVASES[name])
    texts.require_legible()
