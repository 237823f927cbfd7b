"""One training step of the graft against torch: `python benchmarks/graft_step.py [--repeats 7]`.

Forward, backward and AdamW update of the loop parameters and the action decoder (policy `full`,
gate `sigmoid`, decoder `pooled`), float32, batch 1. The other side is diffusers' transformer with
the same weights, looped by canvas-engineering, whose checkpointing is on; the two take turns in one
process, after their losses and gradients have been compared. `--memory ROUNDS` runs our step alone
and prints its peak memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from against_torch import (
    alternate,
    bare_graft,
    machine,
    params_from_torch,
    relative_error,
    report,
)

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_config import trainable_patterns
from roam_jax.cogvideox.names import transformer_names
from roam_jax.contracts import ACTION_DIM, Params, TimeSpec
from roam_jax.train import names
from roam_jax.train.state import merge, partition

TIME = TimeSpec(frames=17, t_current=1)
LEARNING_RATE = 1e-4
TOLERANCE = 1e-5
RATIO = 1.0

Inputs = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--heads", type=int, default=8, help="heads of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latent_size", type=int, nargs=2, default=(14, 16), metavar="N")
    parser.add_argument("--memory", type=int, metavar="ROUNDS", help="our peak memory instead")
    args = parser.parse_args()

    config = TransformerConfig(num_attention_heads=args.heads, num_layers=args.layers)
    inputs = make_inputs(config, args.latent_size)
    if args.memory:
        print(json.dumps(peak_memory(config, inputs, rounds=args.memory)))
        return
    # Not at the top: torch would count as memory.
    from torch_graft import TorchGraft

    print(machine())
    theirs = TorchGraft(config, inputs, rounds=args.rounds, learning_rate=LEARNING_RATE)
    params = params_from_torch(transformer_names(config), theirs.backbone_state)
    params = names.unflatten({**names.flatten(params), **jax.device_put(theirs.trained())})
    ours = OurGraft(config, inputs, params, rounds=args.rounds)
    errors = compare(ours, theirs)
    timings, _ = alternate([ours.step, theirs.step], repeats=args.repeats)
    within = report("step", errors, *timings, tolerance=TOLERANCE, required=RATIO)
    sys.exit(0 if within else 1)


def make_inputs(config: TransformerConfig, size: tuple[int, int]) -> Inputs:
    """Random latents, text and targets, and one timestep."""
    rng = np.random.default_rng(0)
    latents = (1, TIME.latents, config.in_channels, *size)
    text = (1, config.max_text_seq_length, config.text_embed_dim)
    shapes = {"latents": latents, "text": text, "velocity": latents, "actions": (1, ACTION_DIM)}
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {**drawn, "timesteps": np.array([500])}


def grafted(config: TransformerConfig, inputs: Inputs, *, rounds: int) -> GraftedTransformer:
    """The model that canvas-engineering's is equal to."""
    return bare_graft(config, inputs["latents"].shape, rounds=rounds, gate="sigmoid")


def model_inputs(inputs: Inputs) -> tuple[Any, ...]:
    """Latents, text, timesteps, and nothing for new regions."""
    return inputs["latents"], inputs["text"], inputs["timesteps"], {}


class OurGraft:
    """The same step in this project.

    Args:
        config: of the backbone.
        inputs: as the other side's.
        params: of the backbone, the loop and the decoder.
        rounds: of every block.
    """

    def __init__(self, config: TransformerConfig, inputs: Inputs, params: Params, *, rounds: int):
        model = grafted(config, inputs, rounds=rounds)
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=1e-2)  # torch's default
        trainable, frozen = partition(params, trainable_patterns("full"))

        def loss_fn(trainable: Params, frozen: Params, x: Inputs) -> jax.Array:
            variables = {"params": merge(trainable, frozen)}
            outputs, _ = model.apply(variables, *model_inputs(x), rounds=rounds)
            errors = (outputs[name] - x[name] for name in ("velocity", "actions"))
            return sum(jnp.square(error).mean() for error in errors)

        def step(trainable: Params, opt_state: optax.OptState, frozen: Params, x: Inputs):
            loss, grads = jax.value_and_grad(loss_fn)(trainable, frozen, x)
            updates, opt_state = optimizer.update(grads, opt_state, trainable)
            return optax.apply_updates(trainable, updates), opt_state, loss, grads

        self.state = trainable, optimizer.init(trainable)
        self.rest = frozen, jax.device_put(inputs)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*self.state, *self.rest)
        self.compiled = compiled.compile()

    def step(self) -> float:
        """The loss, and one update after it."""
        *self.state, loss, self.grads = self.compiled(*self.state, *self.rest)
        return float(loss)

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last step, by name."""
        return {name: np.asarray(grad) for name, grad in names.flatten(self.grads).items()}


def compare(ours: OurGraft, theirs: Any) -> dict[str, float]:
    """Relative L2 errors of the first step: of the loss, and of each group of gradients."""
    losses = ours.step(), theirs.step()
    errors = {"loss": abs(losses[0] / losses[1] - 1)}
    grads = ours.gradients(), theirs.gradients()
    if grads[0].keys() != grads[1].keys():
        raise ValueError(f"gradients of {sorted(grads[0])} against {sorted(grads[1])}")
    for group in ("blocks/loop", "graft/decoder"):
        chosen = [[v for k, v in sorted(g.items()) if k.startswith(group)] for g in grads]
        errors[group] = relative_error(*chosen)
    return errors


def peak_memory(config: TransformerConfig, inputs: Inputs, *, rounds: int) -> dict[str, float]:
    """MiB of one step, without torch: what XLA plans, and the most that the process had."""
    model = grafted(config, inputs, rounds=rounds)
    init = functools.partial(model.init, rounds=1)
    shapes = jax.eval_shape(init, jax.random.key(0), *model_inputs(inputs))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.device_put(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes
    )
    ours = OurGraft(config, inputs, params, rounds=rounds)
    ours.step()
    memory = ours.compiled.memory_analysis()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB on Linux
    return {
        "rounds": rounds,
        "temporaries": memory.temp_size_in_bytes / 2**20,
        "arguments": memory.argument_size_in_bytes / 2**20,
        "peak_resident": peak / 2**10,
    }


if __name__ == "__main__":
    main()
