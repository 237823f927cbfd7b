"""Random valid canvases, the same as canvas-engineering declares them, and one schema file."""

import copy
import dataclasses

import canvas_engineering as ce
import numpy as np
from hypothesis import strategies as st

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology import CanvasTopology, Connection, TemporalFill

# What canvas-engineering keeps and nothing here reads.
REGION_EXTRAS = {
    "semantic_type": st.text(max_size=8),
    "semantic_embedding": st.lists(st.floats(-1, 1), min_size=1, max_size=3),
    "embedding_model": st.just("a/model"),
    "carrier": st.sampled_from(["diffusive", "memory"]),
}
EDGE_EXTRAS = {
    "operator": st.sampled_from(["observe", "predict"]),
    "write_mode": st.sampled_from(["replace", "gate"]),
}
KINDS = ["cross_attention", "gated", "none"]


# The values of a schema file.
FILE = {
    "schema_version": "0.2.0",
    "layout": {"T": 4, "spatial_shape": [4, 4], "d_model": 8, "t_current": 1},
    "regions": {
        "visual": {"bounds": [0, 4, 0, 3, 0, 4]},
        "action": {"bounds": [0, 2, 3, 4, 0, 4], "period": 2, "carrier": "diffusive"},
    },
    "topology": [
        {"src": "visual", "dst": "visual"},
        {"src": "action", "dst": "visual", "t_src": 0, "t_dst": -1},
    ],
    "metadata": {"model": "demo"},
}


@st.composite
def layouts(draw, *, lengths: bool = False) -> CanvasLayout:
    """Up to four boxes anywhere on a grid of up to 4 x 2 x 3 cells; those that overlap are left."""
    T, H, W = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    taken = np.zeros((T, H, W), bool)
    regions = {}
    for number in range(draw(st.integers(1, 4))):
        bounds = ()
        for size in (T, H, W):
            low = draw(st.integers(0, size - 1))
            bounds += (low, draw(st.integers(low + 1, size)))
        box = tuple(slice(*pair) for pair in zip(bounds[::2], bounds[1::2], strict=True))
        if taken[box].any():
            continue
        taken[box] = True
        # Names whose alphabetical order is not the order of declaration.
        regions[f"{'dbca'[number]}{number}"] = RegionSpec(
            bounds,
            period=draw(st.integers(1, 3)),
            is_output=draw(st.booleans()),
            loss_weight=draw(st.sampled_from([0, 0.5, 1.0, 3])),
            length=draw(st.none() | st.integers(1, taken[box].size)) if lengths else None,
            default_attn=draw(st.sampled_from(KINDS)),
        )
    t_current = draw(st.integers(0, T))
    return CanvasLayout(T, H, W, d_model=4, regions=regions, t_current=t_current)


@st.composite
def edges(draw, layout: CanvasLayout, *, pairs: bool = False) -> list[Connection]:
    """Up to five edges between any regions, with offsets that may leave the canvas.

    Args:
        draw: hypothesis' own.
        layout: the canvas.
        pairs: whether some have listed pairs of frames, which canvas-engineering has not.
    """
    names = st.sampled_from(list(layout.regions))
    offset = st.none() | st.integers(-layout.T, layout.T)
    edge = st.builds(
        Connection,
        src=names,
        dst=names,
        weight=st.sampled_from([0, 0.25, 1.0, 2]) | st.floats(0.01, 10),
        t_src=offset,
        t_dst=offset,
        temporal_fill=st.sampled_from(TemporalFill),
        interpolation_order=st.integers(1, 3),
        fn=st.none() | st.sampled_from(KINDS),
    )
    drawn = draw(st.lists(edge, max_size=5))
    for number, made in enumerate(drawn):
        if pairs and draw(st.booleans()):
            ends = (st.sampled_from(layout.regions[name].frames) for name in (made.src, made.dst))
            listed = tuple(draw(st.lists(st.tuples(*ends), min_size=1, max_size=6, unique=True)))
            drawn[number] = dataclasses.replace(made, t_src=None, t_dst=None, pairs=listed)
    return drawn


def some_of(extras: dict[str, st.SearchStrategy]) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=extras)


def ce_layout(layout: CanvasLayout, extras: dict[str, dict] | None = None) -> ce.CanvasLayout:
    """Lengths are left out: canvas-engineering has none."""
    return ce.CanvasLayout(
        T=layout.T,
        spatial_shape=(layout.H, layout.W),
        d_model=layout.d_model,
        t_current=layout.t_current,
        regions={
            name: ce.RegionSpec(
                bounds=spec.bounds,
                period=spec.period,
                is_output=spec.is_output,
                loss_weight=spec.loss_weight,
                default_attn=spec.default_attn,
                **(extras or {}).get(name, {}),
            )
            for name, spec in layout.regions.items()
        },
    )


def ce_topology(topology: CanvasTopology, extras: list[dict] | None = None) -> ce.CanvasTopology:
    extras = extras or [{}] * len(topology.connections)
    return ce.CanvasTopology(
        [
            ce.Connection(
                src=edge.src,
                dst=edge.dst,
                weight=edge.weight,
                t_src=edge.t_src,
                t_dst=edge.t_dst,
                fn=edge.fn,
                temporal_fill=ce.TemporalFill(edge.temporal_fill.value),
                interpolation_order=edge.interpolation_order,
                **more,
            )
            for edge, more in zip(topology.connections, extras, strict=True)
        ]
    )


def ce_mask(layout: CanvasLayout, topology: CanvasTopology) -> np.ndarray:
    return ce_topology(topology).to_attention_mask(ce_layout(layout)).numpy()


def edited(path: str, value) -> dict:
    """`FILE` with one value changed, or taken out by None."""
    made = copy.deepcopy(FILE)
    *parents, last = [int(name) if name.isdigit() else name for name in path.split("/")]
    target = made
    for name in parents:
        target = target[name]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return made


def sequence(layout: CanvasLayout) -> np.ndarray:
    """Flat indices of the tokens, region by region."""
    return np.concatenate([layout.region_indices(name) for name in layout.regions])


def places(layout: CanvasLayout) -> tuple[np.ndarray, np.ndarray]:
    """Region and real frame of each token, in sequence order."""
    names, real = [], []
    for name, spec in layout.regions.items():
        for cell in layout.region_indices(name):
            names.append(name)
            real.append(int(cell) // (layout.H * layout.W) * spec.period)
    return np.array(names), np.array(real)


def allowed(topology: CanvasTopology, layout: CanvasLayout) -> np.ndarray:
    """(N, N) bool in sequence order: who reads whom, kinds ignored."""
    cells = sequence(layout)
    return topology.to_attention_mask(layout)[np.ix_(cells, cells)] > 0


def influences(reads: np.ndarray, applications: int) -> np.ndarray:
    """(N, N) bool: whether the row's output depends on the column's input, by matrix powers."""
    step = (reads | np.eye(len(reads), dtype=bool)).astype(np.int64)
    reached = np.eye(len(reads), dtype=np.int64)
    for _ in range(applications):
        reached = (reached @ step > 0).astype(np.int64)
    return reached > 0
