"""A tiny backbone with random weights, and grafts on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftConfig, GraftedTransformer
from roam_jax.cogvideox.graft_canvas import graft_layout, graft_topology
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.contracts import TimeSpec

TIME = TimeSpec(frames=13, t_current=2)
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


def make_graft(*, decoder="tokens", gate="identity", rounds=4, time=TIME, reads_new=0.0, **sizes):
    layout = graft_layout(
        time=time,
        rows=2,
        columns=3,
        width=CONFIG.width,
        text_length=CONFIG.max_text_seq_length,
        action_cells=decoder == "tokens",
        **sizes,
    )
    return GraftedTransformer(
        config=CONFIG,
        graft_config=GraftConfig(rounds=rounds, gate=gate, decoder=decoder),
        layout=layout,
        topology=graft_topology(layout, backbone_reads_new=reads_new),
    )


def make_inputs(time=TIME, *, batch=2, seed=1):
    keys = jax.random.split(jax.random.key(seed), 3)
    return (
        jax.random.normal(keys[0], (batch, time.latents, 16, 4, 6)),
        jax.random.normal(keys[1], (batch, CONFIG.max_text_seq_length, CONFIG.text_embed_dim)),
        jnp.array([999, 250])[:batch],
        jax.random.normal(keys[2], (batch, time.past_actions, 7)),
    )


def run(model, params, inputs, *, rounds=1):
    """Outputs and measures; compiled, since op by op is much slower."""
    return jax.jit(lambda p, x: model.apply({"params": p}, *x, rounds=rounds))(params, inputs)


def backbone_output(params, inputs):
    """The ungrafted model on the same weights."""
    own = {k: v for k, v in params.items() if k != "graft"}
    own["blocks"] = {k: v for k, v in own["blocks"].items() if k != "loop"}
    return jax.jit(Transformer(CONFIG).apply)({"params": own}, *inputs[:3])


def make_params(model, inputs, *, seed=0):
    """Random parameters, norms and biases included, loop rows at their initial zeros."""
    init = functools.partial(model.init, rounds=1)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = 1 / np.sqrt(leaf.shape[-2]) if name == "kernel" else 0.2
        values = scale * rng.standard_normal(leaf.shape) + (name == "scale")
        loop = any(key.key == "loop" for key in path)
        return jnp.asarray(0 * values if loop else values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
