"""Topologies of the study: which streams meet, and where.

Each is a function that makes a topology for a layout; none of them makes an edge that reads
nothing. A *stream* is a region, or a group of regions that read each other densely. Topologies in
time are in `temporal_topologies.py`, random ones in `random_topologies.py`; `TOPOLOGIES` lists all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from roam_jax.canvas.agents import multi_agent
from roam_jax.canvas.kinds import check_kind
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.random_topologies import local_plus_sparse_global, random_matched
from roam_jax.canvas.temporal_topologies import (
    ages,
    among,
    between,
    causal,
    chosen_regions,
    from_reads,
    latest,
    local_window,
)
from roam_jax.canvas.topology import CanvasTopology, Connection, segment_keys
from roam_jax.morphology import Morphology

Stream = str | Sequence[str]
# Regions of a driven joint: what is observed of it, and the actions that are predicted.
JOINT_REGION, ACTION_REGION = "joint_{}", "action_{}"


def central_thought(
    layout: CanvasLayout, *, streams: Sequence[Stream], thought: str
) -> CanvasTopology:
    """Streams meet in a thought region and nowhere else.

    A small region that all streams write to and read from is a bottleneck that they share, a global
    workspace (Baars 1988; Goyal et al. 2021, arXiv:2103.01197). A stream reads itself and the
    thought, the thought reads all. Every chain of reads between two streams passes the thought, so
    nothing crosses in a single application of a block.

    Args:
        layout: the canvas.
        streams: regions, or groups of regions.
        thought: the region in which they meet.

    Raises:
        ValueError: a region is unknown or named twice, or there are no streams.
    """
    groups = _checked_streams(layout, streams, beside=[thought])
    edges = [*_within(groups), Connection(thought, thought)]
    for name in (name for group in groups for name in group):
        edges += [Connection(name, thought), Connection(thought, name)]
    return CanvasTopology(tuple(edges))


def thalamic_relay(
    layout: CanvasLayout, *, streams: Sequence[Stream], relay: str, gate: str = "gated"
) -> CanvasTopology:
    """Streams meet in a relay whose answer each of them gates.

    The thalamus passes on what cortical areas tell each other, and regulates how much of it gets
    through (Sherman and Guillery 2002, doi:10.1098/rstb.2002.1161). As `central_thought`, but what
    a stream reads of the relay comes by edges of a gated kind. With the kind `none`, the streams
    are cut off from each other: the lesion to compare with.

    Args:
        layout: the canvas.
        streams: regions, or groups of regions.
        relay: the region in which they meet.
        gate: kind of the edges by which streams read the relay.

    Raises:
        ValueError: a region is unknown or named twice, there are no streams, or the kind is unknown
            or cannot run.
    """
    groups = _checked_streams(layout, streams, beside=[relay])
    edges = [*_within(groups), Connection(relay, relay)]
    for name in (name for group in groups for name in group):
        gated = Connection(name, relay, fn=gate)
        check_kind(str(gated), gate)
        edges += [gated, Connection(relay, name)]
    return CanvasTopology(tuple(edges))


def cortical_hierarchy(layout: CanvasLayout, *, levels: Sequence[Stream]) -> CanvasTopology:
    """A ladder of levels that see their neighbours, with coarser clocks further up.

    Cortical areas form a hierarchy with connections up and down (Felleman and Van Essen 1991,
    doi:10.1093/cercor/1.1.1), and slower modules keep the longer view (Koutnik et al. 2014,
    arXiv:1402.3511). A level reads itself; of the level above the latest frame, held until the
    next; of the level below all frames since its own previous tick. A level influences one k levels
    away after k applications of a block, no sooner.

    Args:
        layout: the canvas.
        levels: regions or groups of regions, from the bottom to the top.

    Raises:
        ValueError: a region is unknown or named twice, there are no levels, or a region ticks
            faster than one of the level below.
    """
    groups = _checked_streams(layout, levels, beside=[])
    period = {name: layout.regions[name].period for group in groups for name in group}
    for below, above in itertools.pairwise(groups):
        slowest, fastest = max(below, key=period.get), min(above, key=period.get)
        if period[fastest] < period[slowest]:
            raise ValueError(
                f"level of {fastest!r} has period {period[fastest]}, the level below, of "
                f"{slowest!r}, has {period[slowest]}: expected no smaller period further up"
            )
    age = ages(layout)
    tick = np.array([layout.regions[name].period for name, _ in segment_keys(layout)])
    reads = np.zeros(age.shape, bool)
    for group in groups:
        reads |= between(layout, group, group)
    for below, above in itertools.pairwise(groups):
        since = (age >= 0) & (age < tick[:, None])
        reads |= since & between(layout, above, below)
        for name in above:
            reads |= latest(age, among(layout, [name])) & between(layout, below, above)
    return from_reads(reads, layout)


def kinematic_tree(layout: CanvasLayout, *, morphology: Morphology) -> CanvasTopology:
    """Joints talk along the body's links, as torques and motions do.

    A joint reads itself, the joint before it and those after it (as the graph policies of Wang et
    al. 2018, NerveNet, and Huang et al. 2020, arXiv:2007.04976). Its action reads itself and its
    joint, and is read by it. All of them read what belongs to no joint, such as a goal or thought
    cells, which read one another and no joint: so a joint learns of another one only by the links
    between them, one link an application of a block.

    Args:
        layout: the canvas, with regions `JOINT_REGION` and `ACTION_REGION` of every joint.
        morphology: the body.

    Raises:
        ValueError: the regions are not those of the body's joints.
    """
    joints, actions = (
        [form.format(name) for name in morphology.joint_names]
        for form in (JOINT_REGION, ACTION_REGION)
    )
    prefixes = tuple(form.format("") for form in (JOINT_REGION, ACTION_REGION))
    there = {name for name in layout.regions if name.startswith(prefixes)}
    if there != {*joints, *actions}:
        raise ValueError(
            f"morphology {morphology.name!r} with joints {', '.join(morphology.joint_names)} does "
            f"not match the canvas: it lacks {sorted({*joints, *actions} - there) or 'no region'} "
            f"and has {sorted(there - {*joints, *actions}) or 'no region'} beside; expected a "
            "region of each joint and of its action"
        )
    shared = [name for name in layout.regions if name not in there]
    edges = [Connection(src, dst) for src in shared for dst in shared]
    for joint, action in zip(joints, actions, strict=True):
        edges += [Connection(joint, joint), Connection(action, action)]
        edges += [Connection(action, joint), Connection(joint, action)]
        edges += [Connection(src, dst) for src in (joint, action) for dst in shared]
    for parent, child in morphology.edges:
        edges += [Connection(joints[parent], joints[child])]
        edges += [Connection(joints[child], joints[parent])]
    return CanvasTopology(tuple(edges))


def _checked_streams(
    layout: CanvasLayout, streams: Sequence[Stream], *, beside: Sequence[str]
) -> list[list[str]]:
    """Streams as groups of regions; none may share a region with another or with `beside`."""
    if isinstance(streams, str):
        raise ValueError(f"streams {streams!r}: expected a list of regions and groups of regions")
    groups = [[stream] if isinstance(stream, str) else list(stream) for stream in streams]
    if not groups or not all(groups):
        raise ValueError(f"streams {list(streams)}: expected at least one, each with a region")
    chosen_regions(layout, [*beside, *(name for group in groups for name in group)])
    return groups


def _within(groups: Sequence[Sequence[str]]) -> list[Connection]:
    """Each group's regions read each other and themselves."""
    return [Connection(src, dst) for group in groups for src in group for dst in group]


# For listing, of any canvas; the first five know no layout and take names of regions alone.
# `kinematic_tree` is of a canvas of joints.
TOPOLOGIES: Mapping[str, Callable[..., CanvasTopology]] = {
    "dense": CanvasTopology.dense,
    "isolated": CanvasTopology.isolated,
    "hub_spoke": CanvasTopology.hub_spoke,
    "causal_chain": CanvasTopology.causal_chain,
    "causal_temporal": CanvasTopology.causal_temporal,
    "central_thought": central_thought,
    "causal": causal,
    "cortical_hierarchy": cortical_hierarchy,
    "thalamic_relay": thalamic_relay,
    "multi_agent": multi_agent,
    "local_window": local_window,
    "local_plus_sparse_global": local_plus_sparse_global,
    "random_matched": random_matched,
}
