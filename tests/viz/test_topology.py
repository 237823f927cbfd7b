"""Pictures of a topology: arrows and labels are read back from the axes."""

import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.contracts import TimeSpec
from roam_jax.viz.edge_times import shown_frames
from roam_jax.viz.edges import edge_label, time_label
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
    assert time_label(Connection("video", "action", t_src=t_src, t_dst=t_dst), LAYOUT) == label


def pairs(test) -> tuple[tuple[int, int], ...]:
    """Canvas frames of video and thought, whose real frames are 0 and 2, that pass a test."""
    return tuple((i, j) for i in range(4) for j in range(2) if test(i - 2 * j))


@pytest.mark.parametrize(
    "listed, label",
    [
        (pairs(lambda age: age >= 0), "t reads up to t"),
        (pairs(lambda age: age >= 1), "t reads up to t-1"),
        (pairs(lambda age: age <= 1), "t reads from t-1 on"),
        (pairs(lambda age: -1 <= age <= 1), "t reads t-1..t+1"),
        (pairs(lambda age: 0 <= age <= 2), "t reads t-2..t"),
        (pairs(lambda age: age == 0), "t reads t"),
        (pairs(lambda age: age == -1), "t reads t+1"),
        (pairs(lambda age: True), "all frames"),
        (((0, 0), (1, 0), (2, 1)), "3 pairs of frames"),
        (((0, 0), (3, 0)), "2 pairs of frames"),
    ],
)
def test_pairs_of_frames_in_words(listed, label):
    assert time_label(Connection("video", "thought", pairs=listed), LAYOUT) == label


def test_the_latest_frame_in_words():
    # Frames of the thought once more, and one between them: what is held has any age.
    regions = {"video": (0, 6, 0, 1, 0, 1), "slow": RegionSpec((0, 2, 1, 2, 0, 1), period=3)}
    layout = CanvasLayout(T=6, H=2, W=1, d_model=8, regions=regions)
    held = ((0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1))
    # Between equal steps that is a window as well.
    assert time_label(Connection("video", "slow", pairs=held), layout) == "t reads t-2..t"
    assert time_label(Connection("slow", "video", pairs=((0, 0), (1, 3))), layout) == "t reads t"
    regions["video"] = (0, 6, 0, 1, 0, 1)
    regions["slow"] = RegionSpec((0, 2, 1, 2, 0, 1), period=2)
    layout = CanvasLayout(T=6, H=2, W=1, d_model=8, regions=regions)
    held = ((0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1))
    assert time_label(Connection("video", "slow", pairs=held), layout) == "t reads the latest"


def test_edges_in_words():
    def label(edge, kind="cross_attention"):
        return edge_label(edge, LAYOUT, kind)

    video, action = "video", "action"
    assert label(Connection(video, action, weight=0.5)) == "all frames, weight 0.5"
    assert label(Connection(video, action, t_src=0, t_dst=-1)) == "t reads t-1, hold"
    assert label(Connection(video, action), "none") == "none, all frames"
    assert label(Connection(video, action, weight=2), "gated") == "gated, all frames, weight 2"
    assert label(Connection(video, action), "cogvideox") == "all frames"


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


def test_other_kinds_have_a_colour_and_a_name(tmp_path, drawn):
    edges = (
        Connection("video", "video"),
        Connection("video", "thought", fn="gated", weight=0.5),
        Connection("action", "video", fn="mamba"),
        Connection("thought", "video", pairs=((0, 0), (0, 3))),
    )
    draw_topology(tmp_path / "t.png", LAYOUT, CanvasTopology(edges))
    graph, table, time = drawn
    colours = {
        text.get_text(): line.get_color()
        for line, text in zip(
            graph.figure.legends[0].get_lines(), graph.figure.legends[0].get_texts(), strict=True
        )
    }
    assert list(colours) == [
        "all frames", "gated, all frames, weight 0.5", "mamba, all frames", "2 pairs of frames",
    ]  # fmt: skip
    assert len(set(colours.values())) == 4
    texts = [text.get_text() for text in table.texts]
    assert texts == ["all", "all: gated\nx 0.5", "all: mamba", "2 pairs"]
    shares = table.collections[0].get_array().reshape(3, 3)
    assert shares.tolist() == [[1, 0, 1], [1, 0, 0], [0.25, 0, 0]]
    assert [a[:2] for a in arrows(time)] == [((0, 2), (0, 0)), ((0, 2), (3, 0))]


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
