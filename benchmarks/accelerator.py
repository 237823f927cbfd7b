"""CogVideoX-2B at full size on one GPU, random bfloat16 weights made on the device.

    python benchmarks/accelerator.py [--parts sampling,decode,encode,action,training,text]

- sampling: a denoising step of the published setting, 49 frames of 480x720 with guidance;
- decode: the VAE on those 13 latent frames, whole and in tiles;
- encode: the VAE on batches of windows of configs/bridge_3loop.py, 17 frames of 256x256;
- action: a deployed pass at these windows, three rounds, the chunk alone against the whole canvas;
- training: loss and gradients of the loops and the graft there (policy `full`), by batch;
- text: T5 v1.1 XXL on one padded prompt.

A line of JSON a measurement: median milliseconds after two calls that do not count, and the most
memory that the part held. Nothing is compared here: tests do that.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout
from roam_jax.cogvideox.graft_config import GraftConfig, trainable_patterns
from roam_jax.cogvideox.graft_topology import TopologyOptions, make_topology
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_encoder import TextEncoder
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_tiling import decode_tiled
from roam_jax.contracts import TimeSpec
from roam_jax.diffusion.samplers import Sampler
from roam_jax.train.state import merge, partition

DTYPE = jnp.bfloat16
REPEATS = 5
# The published clip, and the window of configs/bridge_3loop.py.
CLIP = (1, 13, 16, 60, 90)
WINDOW = TimeSpec(frames=17, t_current=2)
LATENT = (16, 32, 32)
ROUNDS = 3
TRAINING_BATCHES = (1, 4, 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    asked = parser.parse_args(argv).parts.split(",")
    if unknown := set(asked) - PARTS.keys():
        parser.error(f"--parts {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
    for part in asked:
        try:
            PARTS[part]()
        except jax.errors.JaxRuntimeError as error:  # out of memory is a result as well
            print(json.dumps({"part": part, "error": str(error).splitlines()[0][:200]}))


def report(what: str, run: Callable[[], Any], **more: Any) -> float:
    """Times a call and prints it; the seconds."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - began
    jax.block_until_ready(run())
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    median = statistics.median(found)
    row = {"what": what, "ms": round(1e3 * median, 2), "compile_s": round(first - median, 1)}
    print(json.dumps({**row, "peak_gb_so_far": round(peak / 1e9, 2), **more}), flush=True)
    return median


def random_params(init: Callable, *args: Any, **kwargs: Any) -> Any:
    """Parameters of a module, drawn on the device; its shapes alone are traced."""
    shapes = jax.eval_shape(functools.partial(init, **kwargs), jax.random.key(0), *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    draw = jax.jit(
        lambda key, shape: 0.02 * jax.random.normal(key, shape, DTYPE), static_argnames="shape"
    )
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([draw(k, shape=s.shape) for k, s in zip(keys, leaves, strict=True)])


def normal(*shape: int) -> jax.Array:
    """Standard normal, in the compute dtype."""
    return jax.random.normal(jax.random.key(2), shape, DTYPE)


def sampling() -> None:
    """One step with guidance: both prompts in one batch, then the sampler."""
    model, sampler = Transformer(TransformerConfig(), DTYPE), Sampler("ddim", 50)
    text = normal(2, model.config.max_text_seq_length, model.config.text_embed_dim)
    params = random_params(model.init, jnp.zeros(CLIP, DTYPE), text[:1], jnp.zeros(1))

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, state, text, index):
        x = jnp.concatenate([state.x, state.x]).astype(DTYPE)
        timesteps = jnp.full(2, jnp.asarray(sampler.timesteps)[index])
        empty, full = jnp.split(model.apply({"params": params}, x, text, timesteps), 2)
        return sampler.step(state, empty + 6 * (full - empty), index, None)

    state = sampler.start(normal(*CLIP).astype(jnp.float32))

    def run():
        nonlocal state
        state = step(params, state, text, 0)
        return state

    seconds = report("denoising step, 49 frames of 480x720, guidance", run)
    print(json.dumps({"what": "50 steps", "s": round(50 * seconds, 1)}))


def decode() -> None:
    """All latent frames of the published clip to pixels."""
    vae = VAE(dtype=DTYPE)
    params = random_params(vae.init, jnp.zeros((1, 3, 9, 64, 64), DTYPE))
    latents = jnp.moveaxis(normal(*CLIP), 2, 1)
    whole = jax.jit(functools.partial(vae.apply, method=VAE.decode))
    report("decode 49 frames of 480x720", lambda: whole({"params": params}, latents))
    report("decode in tiles", lambda: decode_tiled(vae, params, latents))


def encode() -> None:
    """Windows to latents, as `encode` and training on the fly do."""
    vae = VAE(dtype=DTYPE)
    params = random_params(vae.init, jnp.zeros((1, 3, 9, 64, 64), DTYPE))
    run = jax.jit(functools.partial(vae.apply, method=VAE.encode))
    for batch in (1, 8):
        video = normal(batch, 3, WINDOW.frames, 256, 256)
        call = functools.partial(run, {"params": params}, video)
        seconds = report(f"encode {batch} windows of 17x256x256", call)
        print(json.dumps({"windows_a_second": round(batch / seconds, 1)}))


def make_graft() -> GraftedTransformer:
    """The graft of configs/bridge_3loop.py."""
    config = TransformerConfig()
    layout = graft_layout(
        time=WINDOW,
        rows=LATENT[1] // config.patch_size,
        columns=LATENT[2] // config.patch_size,
        width=config.width,
        text_length=config.max_text_seq_length,
        new=NewRegions(),
    )
    topology = make_topology(layout, TopologyOptions("dense"))
    return GraftedTransformer(config, GraftConfig(rounds=ROUNDS), layout, topology, DTYPE)


def graft_inputs(model: GraftedTransformer, batch: int) -> dict[str, Any]:
    """Latents, text, and what the observed cells hold."""
    text = model.config.max_text_seq_length, model.config.text_embed_dim
    past = model.layout.region_numel("past_action")
    return {
        "latents": normal(batch, WINDOW.latents, *LATENT),
        "text": normal(batch, *text),
        "timesteps": jnp.full(batch, 999),
        "data": {"past_action": normal(batch, past, 7)},
    }


def action() -> None:
    """One deployed pass: what a policy waits for."""
    model = make_graft()
    inputs = graft_inputs(model, 1)
    params = random_params(model.init, **inputs, rounds=1)
    for wanted in (("actions",), None):
        run = jax.jit(functools.partial(model.apply, rounds=ROUNDS, wanted=wanted))
        what = "actions alone" if wanted else "whole canvas"
        report(f"deployed pass, {what}", lambda run=run: run({"params": params}, **inputs)[0])


def training() -> None:
    """Loss and gradients with the backbone frozen."""
    model = make_graft()
    params = random_params(model.init, **graft_inputs(model, 1), rounds=1)
    trainable, frozen = partition(params, trainable_patterns("full"))
    trainable = jax.tree.map(lambda x: x.astype(jnp.float32), trainable)

    def loss(trainable, frozen, inputs):
        variables = {"params": merge(trainable, frozen)}
        outputs, _ = model.apply(variables, **inputs, rounds=ROUNDS)
        return sum(jnp.mean(jnp.square(x.astype(jnp.float32))) for x in outputs.values())

    step = jax.jit(jax.value_and_grad(loss))
    for batch in TRAINING_BATCHES:
        inputs = graft_inputs(model, batch)
        call = functools.partial(step, trainable, frozen, inputs)
        seconds = report(f"loss and gradients, batch {batch}", call)
        print(json.dumps({"windows_a_second": round(batch / seconds, 2)}))


def text() -> None:
    """226 tokens through the encoder."""
    model = TextEncoder(TextEncoderConfig(), DTYPE)
    ids = jnp.asarray(np.arange(226)[None] % 100, jnp.int32)
    params = random_params(model.init, ids)
    run = jax.jit(model.apply)
    report("T5 v1.1 XXL, one prompt", lambda: run({"params": params}, ids))


PARTS = {
    "sampling": sampling,
    "decode": decode,
    "encode": encode,
    "action": action,
    "training": training,
    "text": text,
}

if __name__ == "__main__":
    main()
