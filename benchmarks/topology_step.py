"""A training step at the shapes of bridge_3loop under several topologies, whole and sliced.

    python benchmarks/topology_step.py [--layers 2] [--repeats 3]

Width, heads, cells and rounds are those of configs/bridge_3loop.py (17 frames of 256x256, 226 text
tokens, three rounds, batch 1); of the 30 blocks a few run, as many as a CPU takes in minutes, with
random weights. Timed are loss and gradient of the loops and the graft (policy `full`), all variants
in turn: the whole loss, and the loss on actions alone, of which only what reaches them is computed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
from against_torch import alternate, machine

from roam_jax.canvas.plan import compile_plan
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout
from roam_jax.cogvideox.graft_config import GraftConfig, trainable_patterns
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.contracts import TimeSpec
from roam_jax.evaluate.flops import count_flops
from roam_jax.train.state import merge, partition

TIME = TimeSpec(frames=17, t_current=2)
LATENT = 16, 32, 32
ROUNDS, THOUGHT_CELLS = 3, 16
TOPOLOGIES = {
    "dense": TopologyOptions("dense"),
    "causal": TopologyOptions("causal", backbone="declared", backbone_reads_new=1.0, window=0),
    "central_thought": TopologyOptions("central_thought"),
}


def make_model(options: TopologyOptions, *, layers: int) -> GraftedTransformer:
    """The graft of bridge_3loop with robot state and thought cells, on a few of the blocks."""
    config = dataclasses.replace(TransformerConfig(), num_layers=layers)
    layout = graft_layout(
        time=TIME,
        rows=LATENT[1] // config.patch_size,
        columns=LATENT[2] // config.patch_size,
        width=config.width,
        text_length=config.max_text_seq_length,
        new=NewRegions(proprio=True, thought_cells=THOUGHT_CELLS),
    )
    topology = make_topology(layout, options)
    return GraftedTransformer(config, GraftConfig(rounds=ROUNDS), layout, topology)


def make_inputs(model: GraftedTransformer) -> dict:
    """Random latents, text, and what the observed regions hold."""
    keys = iter(jax.random.split(jax.random.key(0), 4))
    layout, config = model.layout, model.config
    text = 1, config.max_text_seq_length, config.text_embed_dim
    data = {
        name: jax.random.normal(next(keys), (1, layout.region_numel(name), 7))
        for name in ("past_action", "observed_proprio")
    }
    return {
        "latents": jax.random.normal(next(keys), (1, TIME.latents, *LATENT)),
        "text": jax.random.normal(next(keys), text),
        "timesteps": jnp.array([999]),
        "data": data,
    }


def make_step(model: GraftedTransformer, wanted: tuple[str, ...] | None):
    """(trainable, frozen, inputs) -> loss and gradients."""

    def loss(trainable, frozen, inputs):
        params = {"params": merge(trainable, frozen)}
        outputs, _ = model.apply(params, **inputs, rounds=ROUNDS, wanted=wanted)
        return sum(jnp.mean(jnp.square(x)) for x in outputs.values())

    return jax.value_and_grad(loss)


def finished(run, *args):
    """Runs and waits for the results."""
    return lambda: jax.block_until_ready(run(*args))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2, help="of the 30 blocks (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps (default: 3)")
    options = parser.parse_args()
    runs, notes = {}, {}
    for name, topology in TOPOLOGIES.items():
        model = make_model(topology, layers=options.layers)
        inputs = make_inputs(model)
        params = jax.jit(functools.partial(model.init, rounds=1))(jax.random.key(1), **inputs)
        trainable, frozen = partition(params["params"], trainable_patterns("full"))
        plan = compile_plan(model.layout, model.topology)
        for about, wanted in (("", None), (", actions alone", ("actions",))):
            step = make_step(model, wanted)
            flops = count_flops(jax.make_jaxpr(step)(trainable, frozen, inputs)).total()
            run = jax.jit(step).lower(trainable, frozen, inputs).compile()
            label = f"{name}{about}"
            runs[label] = finished(run, trainable, frozen, inputs)
            notes[label] = f"{plan.pairs / plan.query_cells**2:6.1%} {flops / 1e9:10,.0f}"
    for run in runs.values():
        run()
    timings, _ = alternate(list(runs.values()), repeats=options.repeats)
    print(machine())
    print(f"{options.layers} of 30 blocks, {plan.query_cells:,} cells with thought, float32")
    print(f"{'':<34}{'pairs':>6} {'GFLOP':>10}  seconds a step")
    for label, timing in zip(runs, timings, strict=True):
        print(f"{label:<34}{notes[label]}  {timing}")


if __name__ == "__main__":
    main()
