"""A scene of few cells with a stream of every kind and objective, and configs and models for it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.canvas.layout import CanvasLayout, RegionSpec
from roam_jax.canvas.topology_kinds import KindOptions, declared_topology
from roam_jax.cli.arguments import load_config
from roam_jax.data.scene import THOUGHT, Scene, Stream
from roam_jax.model.canvas_model import CanvasModel
from roam_jax.model.loop_options import LoopOptions
from roam_jax.tasks.balance import Balance
from roam_jax.tasks.canvas import SceneModel
from roam_jax.tasks.canvas_task import cell_regions, streamed_layout
from tests.conftest import ROOT

STREAMS = (
    Stream("seen", "patches", (1, 4, 4, 2), "input", patch=2),
    Stream("words", "tokens", (3,), "input", vocabulary=5),
    Stream("gauge", "scalars", (2,), "input"),
    Stream("pose", "vectors", (1, 3), "input"),
    Stream("film", "patches", (1, 4, 4, 2), "output", "diffusion", patch=2),
    Stream("later", "vectors", (2, 3), "output", "diffusion"),
    Stream("gain", "scalars", (2,), "output", "diffusion"),
    Stream("price", "scalars", (3,), "output", "regression"),
    Stream("answer", "tokens", (2,), "output", "classification", vocabulary=4),
)
# Enough for what does not depend on kinds of streams, and quicker to compile.
FEW = tuple(s for s in STREAMS if s.name in ("words", "film", "price", "answer"))
CELLS = {"seen": 4, "words": 3, "gauge": 2, "pose": 1, "film": 4, "later": 2, "gain": 2}
CELLS |= {"price": 3, "answer": 2, THOUGHT: 2}


@dataclasses.dataclass(frozen=True)
class SmallScene(Scene):
    """Every stream is noise, or random words; one row of cells in two frames."""

    streams: tuple = STREAMS

    def layout(self, width: int) -> CanvasLayout:
        regions, here = {}, 0
        kept = {stream.name for stream in self.streams} | {THOUGHT}
        for name, count in CELLS.items():
            if name not in kept:
                continue
            last = name in ("film", "later", "gain", "price", "answer")
            spec = (int(last), 1 + last, 0, 1, here, here + count)
            regions[name] = RegionSpec(spec, is_output=last)
            here += count
        return CanvasLayout(T=2, H=1, W=here, d_model=width, regions=regions, t_current=1)

    def groups(self):
        return (
            ("seen", "film"),
            ("words", "answer"),
            ("gauge",),
            ("pose", "later"),
            ("gain",),
            ("price",),
        )

    def examples(self, seed, index):
        sizes = [math.prod(stream.shape) for stream in self.streams]

        def one(seed, index):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), seed), index)
            parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1].tolist())
            return {
                s.name: (1000 * jnp.abs(x)).astype(jnp.int32) % s.vocabulary
                if s.kind == "tokens"
                else x.reshape(s.shape)
                for s, x in zip(self.streams, parts, strict=True)
            }

        return jax.vmap(one)(jnp.asarray(seed), jnp.asarray(index))


def small_module(*, topology="central_thought", streams=STREAMS, depth=2, **options) -> CanvasModel:
    """A canvas model of width 16 on the small scene; options of its loop."""
    scene = SmallScene(streams)
    layout = scene.layout(16)
    decoders = {"film": "attention", "later": "linear", "answer": "attention"}
    decoders = {name: kind for name, kind in decoders.items() if name in layout.regions}
    canvas = streamed_layout(layout, scene, scene.streams)
    options = {"rounds": 2, "gate": "sigmoid", **options}
    return CanvasModel(
        layout=layout,
        topology=declared_topology(canvas, KindOptions(topology)),
        regions=cell_regions(layout, scene.streams, decoder="mlp", own=decoders),
        options=LoopOptions(**options),
        depth=depth,
        heads=2,
        unroll=False,  # compiles quickest
    )


def small_model(*, balance="fixed", module=None, **fields) -> SceneModel:
    """The model with its scene, and a balance without further wishes unless it is one."""
    module = module or small_module()
    if isinstance(balance, str):
        names = tuple(region.name for region in module.regions if region.objective)
        initial = dict.fromkeys(names, 1.0)
        balance = Balance(balance, names, initial=initial)
    streams = tuple(s for s in STREAMS if s.name in module.layout.regions)
    return SceneModel(module=module, scene=SmallScene(streams), balance=balance, **fields)


def small_batch(size=4, seed=0):
    return {
        "scene_seed": jnp.full(size, seed, jnp.uint32),
        "scene_index": jnp.arange(size, dtype=jnp.uint32),
    }


def random_like(params, *, seed=0, scale=0.2):
    """Random parameters of the same shapes, so that nothing is 0 that starts so."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)


def toy_config(variant="tiny", file="canvas_toy"):
    return load_config(str(ROOT / f"configs/{file}.py:{variant}"))
