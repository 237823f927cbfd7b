"""A tiny backbone with random weights, and grafts on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import (
    NewRegions,
    graft_layout,
    graft_topology,
    view_regions,
)
from roam_jax.cogvideox.graft_cells import DATA_FIELDS
from roam_jax.cogvideox.graft_config import CELL_DECODERS, GraftConfig
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.contracts import TimeSpec

TIME = TimeSpec(frames=13, t_current=2)
# (C, h, w) of a latent frame.
LATENT = 16, 4, 6
CONFIG = TransformerConfig(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=16,
    time_embed_dim=32,
    text_embed_dim=24,
    max_text_seq_length=5,
    sample_width=8,
    sample_height=8,
)


# Further videos beside the first.
VIEWS = {"cameras": ("side", "wrist"), "goal": True, "camera_weight": 0.5}
# All vectors that may stand beside text and video.
ALL_REGIONS = {
    "proprio": True,
    "reward": True,
    "thought_cells": 3,
    "thought_period": 2,
    "proprio_weight": 1.0,
    "reward_weight": 0.5,
}


def make_graft(*, decoder="tokens", time=TIME, reads_new=0.0, regions=None, blocks=(-1,), **config):
    layout = graft_layout(
        time=time,
        rows=2,
        columns=3,
        width=CONFIG.width,
        text_length=CONFIG.max_text_seq_length,
        new=NewRegions(actions=decoder in CELL_DECODERS, **(regions or {})),
    )
    return GraftedTransformer(
        config=CONFIG,
        graft_config=GraftConfig(decoder=decoder, decoder_blocks=blocks, **{"rounds": 4, **config}),
        layout=layout,
        topology=graft_topology(layout, backbone_reads_new=reads_new),
    )


def make_inputs(model, *, batch=2, seed=1):
    """Latents, text, timesteps, and what the new regions hold, as keyword arguments."""
    layout, rng = model.layout, np.random.default_rng(seed)
    sizes = model.graft_config

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32)

    widths = {"past_action": sizes.action_dim, "observed_proprio": sizes.proprio_dim}
    data = {
        name: normal(layout.region_numel(name), widths.get(name, 1))
        for name in layout.regions
        if name in DATA_FIELDS
    }
    for name in (name for view in view_regions(layout) for name in view):
        data[name] = normal(layout.region_spec(name).shape[0], *LATENT)
    inputs = {
        "latents": normal(layout.T, *LATENT),
        "text": normal(CONFIG.max_text_seq_length, CONFIG.text_embed_dim),
        "timesteps": jnp.array([999, 250])[:batch],
        "data": data,
    }
    if model.graft_config.decoder == "tokens_diffused":
        data["future_action"] = normal(layout.region_numel("future_action"), sizes.action_dim)
        inputs["action_timesteps"] = jnp.array([400, 999])[:batch]
    return inputs


def run(model, params, inputs, *, rounds=1):
    """Outputs and measures; compiled, since op by op is much slower."""
    return jax.jit(lambda p, x: model.apply({"params": p}, **x, rounds=rounds))(params, inputs)


def backbone_output(params, inputs):
    """The ungrafted model on the same weights."""
    own = {k: v for k, v in params.items() if k != "graft"}
    own["blocks"] = {k: v for k, v in own["blocks"].items() if k != "loop"}
    own_inputs = [inputs[name] for name in ("latents", "text", "timesteps")]
    return jax.jit(Transformer(CONFIG).apply)({"params": own}, *own_inputs)


def make_params(model, inputs, *, seed=0):
    """Random parameters, norms and biases included, loop rows at their initial zeros."""
    init = functools.partial(model.init, rounds=1)
    shapes = jax.eval_shape(init, jax.random.key(0), **inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = 1 / np.sqrt(leaf.shape[-2]) if name == "kernel" else 0.2
        values = scale * rng.standard_normal(leaf.shape) + (name == "scale")
        loop = any(key.key == "loop" for key in path)
        return jnp.asarray(0 * values if loop else values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
