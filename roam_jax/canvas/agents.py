"""Several agents on one canvas, who tell each other what declared channels carry and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.temporal_topologies import chosen_regions
from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.spelling import did_you_mean

# Between an agent's name and a region's.
SEPARATOR = "."


def join_layouts(agents: Mapping[str, CanvasLayout]) -> CanvasLayout:
    """Agents' canvases below each other, along the height; regions are named `agent.region`.

    Canvases may differ in all three sizes; what is left of the grid belongs to no region.

    Args:
        agents: name -> canvas.

    Raises:
        ValueError: there are no agents, a name has a dot in it, or two canvases differ in
            `d_model` or in `t_current`.
    """
    if not agents:
        raise ValueError("no agents: expected at least one canvas")
    first = next(iter(agents))
    regions, top = {}, 0
    for agent, layout in agents.items():
        if SEPARATOR in agent:
            raise ValueError(f"agent {agent!r}: expected a name without {SEPARATOR!r}")
        for field in ("d_model", "t_current"):
            found, expected = getattr(layout, field), getattr(agents[first], field)
            if found != expected:
                raise ValueError(
                    f"agent {agent!r} has {field} {found}, agent {first!r} has {expected}: "
                    "expected the same"
                )
        for name, spec in layout.regions.items():
            t0, t1, h0, h1, w0, w1 = spec.bounds
            moved = dataclasses.replace(spec, bounds=(t0, t1, h0 + top, h1 + top, w0, w1))
            regions[f"{agent}{SEPARATOR}{name}"] = moved
        top += layout.H
    return CanvasLayout(
        T=max(layout.T for layout in agents.values()),
        H=top,
        W=max(layout.W for layout in agents.values()),
        d_model=agents[first].d_model,
        regions=regions,
        t_current=agents[first].t_current,
    )


def multi_agent(
    layout: CanvasLayout,
    *,
    agents: Mapping[str, Sequence[str]] | None = None,
    channels: Sequence[tuple[str, str]],
) -> CanvasTopology:
    """Agents who think for themselves and talk through declared channels.

    What agents learn to tell each other is a question of its own, and a channel makes it visible
    (Sukhbaatar et al. 2016, arXiv:1605.07736). An agent's regions read each other densely; between
    agents, a channel is the only edge. Every chain of reads from one agent to another passes a
    channel; without one, nothing of an agent reaches the other.

    Args:
        layout: a canvas with the regions of all agents.
        agents: name -> its regions; None = by the names that `join_layouts` gives.
        channels: (region that reads, region that is read), of two agents.

    Raises:
        ValueError: a region is unknown, of no agent or of two, a channel is given twice or stays
            within an agent, or an agent has no regions.
    """
    agents = _by_name(layout) if agents is None else agents
    for agent, names in agents.items():
        if not names:
            raise ValueError(f"agent {agent!r} has no regions: expected at least one")
    chosen_regions(layout, [name for names in agents.values() for name in names])
    owner = {name: agent for agent, names in agents.items() for name in names}
    edges = [Connection(s, d) for names in agents.values() for s in names for d in names]
    channels = [_pair(channel) for channel in channels]
    for number, channel in enumerate(channels):
        for name in channel:
            layout.region_spec(name)
            if name not in owner:
                raise ValueError(
                    f"channel {channel}: {name!r} is of no agent: {did_you_mean(name, owner)}"
                )
        reader, read = channel
        if owner[reader] == owner[read]:
            raise ValueError(f"channel {channel} stays within agent {owner[read]!r}")
        if channel in channels[:number]:
            raise ValueError(f"channel {channel} is given twice")
        edges.append(Connection(reader, read))
    return CanvasTopology(tuple(edges))


def _pair(channel: Sequence[str]) -> tuple[str, str]:
    if isinstance(channel, str) or len(channel) != 2:
        raise ValueError(f"channel {channel!r}: expected (region that reads, region that is read)")
    return tuple(channel)


def _by_name(layout: CanvasLayout) -> dict[str, list[str]]:
    """Agents by what stands before the dot in their regions' names."""
    agents: dict[str, list[str]] = {}
    for name in layout.regions:
        agent, dot, _ = name.partition(SEPARATOR)
        if not dot:
            raise ValueError(
                f"region {name!r} names no agent: expected agent{SEPARATOR}region, or `agents`"
            )
        agents.setdefault(agent, []).append(name)
    return agents
