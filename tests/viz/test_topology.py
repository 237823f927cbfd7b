"""Pictures of a topology: arrows and labels are read back from the axes."""

import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.viz.topology import draw_topology, edge_label, offset_label

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
