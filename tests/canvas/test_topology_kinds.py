"""Kinds of topology on a layout of streams that is no graft's."""

import itertools

import numpy as np
import pytest

from roam_jax.canvas import topologies
from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, segment_sizes
from roam_jax.canvas.topology_kinds import KINDS, KindOptions, StreamedLayout, declared_topology

LAYOUT = CanvasLayout(
    3, 1, 8, 16,
    {
        "words": (0, 1, 0, 1, 0, 3),
        "film": (0, 3, 0, 1, 3, 5),
        "pose": (0, 2, 0, 1, 5, 6),
        "later": (2, 3, 0, 1, 5, 6),
        "thought": (0, 3, 0, 1, 6, 8),
    },
)  # fmt: skip
CANVAS = StreamedLayout(
    LAYOUT,
    streams=(("words",), ("film",), ("pose", "later")),
    body=frozenset({"pose", "later"}),
    thought="thought",
    more_thought="a scene that has some",
)


def make(kind, canvas=CANVAS, **options):
    return declared_topology(canvas, KindOptions(kind, **options))


def readers(topology) -> dict[str, set[str]]:
    """Region -> regions that it reads."""
    edges = topology.connections
    return {src: {e.dst for e in edges if e.src == src} for src in LAYOUT.regions}


def test_kinds_are_those_of_the_topology_module():
    names = list(LAYOUT.regions)
    assert make("dense") == CanvasTopology.dense(names)
    assert make("isolated") == CanvasTopology.isolated(names)
    assert make("causal_chain") == CanvasTopology.causal_chain(names)
    assert make("causal", window=0) == topologies.causal(LAYOUT)
    assert make("local_window", window=0) == topologies.local_window(LAYOUT, frames=0)


def test_streams_meet_in_thought():
    found = readers(make("central_thought"))
    assert found["pose"] == found["later"] == {"pose", "later", "thought"}
    assert found["film"] == {"film", "thought"} and found["thought"] == set(LAYOUT.regions)
    assert readers(make("hub_spoke"))["words"] >= {"thought"}


def test_the_body_is_above_what_is_seen_and_reads_the_agents():
    levels = readers(make("cortical_hierarchy"))
    assert "thought" in levels["pose"] and "film" in levels["pose"]
    assert "thought" not in levels["film"] and "words" not in levels["thought"]
    agents = readers(make("multi_agent"))
    assert agents["pose"] == agents["thought"] == set(LAYOUT.regions)
    assert agents["film"] == {"film"} and agents["words"] == {"words"}


@pytest.mark.parametrize("governed", [None, [("film", "film"), ("film", "words")]])
def test_the_control_allows_as_many_pairs(governed):
    sizes = segment_sizes(LAYOUT)
    owner = np.array([name for name, spec in LAYOUT.regions.items() for _ in spec.frames])
    pairs = list(itertools.product(LAYOUT.regions, repeat=2)) if governed is None else governed
    where = np.array([[(a, b) in pairs for b in owner] for a in owner])
    matched = make("central_thought").reads(LAYOUT)
    options = KindOptions("random_matched", matches="central_thought", seed=1)
    found = declared_topology(CANVAS, options, governed=governed).reads(LAYOUT)
    wanted = sizes @ (matched & where) @ sizes
    assert abs(sizes @ (found & where) @ sizes - wanted) <= max(0.01 * wanted, sizes.max() ** 2)


def test_bad_options_and_layouts_are_refused():
    for kind in ("hub_spoke", "central_thought", "cortical_hierarchy", "thalamic_relay"):
        spec = RegionSpec((0, 1, 0, 1, 0, 2))
        bare = StreamedLayout(
            CanvasLayout(1, 1, 2, 16, {"film": spec}), (("film",),), frozenset(), "thought",
            "a scene that has some",
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"{kind}.*thought cells: expected a scene that has"):
            make(kind, bare)
    with pytest.raises(ValueError, match="multi_agent.*needs a body"):
        make("multi_agent", bare)
    with pytest.raises(ValueError, match="kinematic_tree' needs a body, .* expected train.task"):
        make("kinematic_tree")
    with pytest.raises(ValueError, match="topology.kind = 'ring'"):
        KindOptions("ring")
    with pytest.raises(ValueError, match="topology.links = -1"):
        KindOptions(links=-1)
    with pytest.raises(ValueError, match="topology.matches = 'schema'"):
        KindOptions("random_matched", matches="schema")
    assert set(KINDS) > {"dense", "schema", "random_matched"}
