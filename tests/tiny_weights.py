"""Random weights of a very small CogVideoX, in a converted folder like any other."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig

TRANSFORMER = TransformerConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    time_embed_dim=16,
    text_embed_dim=512,
    max_text_seq_length=1,
    sample_width=8,
    sample_height=8,
    sample_frames=9,
    spatial_interpolation_scale=1.0,
)
VAE_CONFIG = VAEConfig(
    block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=1.0
)


def random_like(shapes, *, seed: int):
    """Numbers of a sensible scale for a tree of shapes; norms start near one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        fan_in = np.prod(leaf.shape[-2:-1]) if name == "kernel" else 25
        return (rng.standard_normal(leaf.shape) / fan_in**0.5 + (name == "scale")).astype("f4")

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_weights(folder: pathlib.Path, *, seed: int = 0) -> pathlib.Path:
    """folder/diffusers in diffusers' format, and its conversion folder/converted."""
    transformer = jax.eval_shape(
        Transformer(TRANSFORMER).init,
        jax.random.key(0),
        jnp.zeros((1, 3, 16, 8, 8)),
        jnp.zeros((1, 1, 512)),
        jnp.zeros(1, jnp.int32),
    )["params"]
    vae = jax.eval_shape(
        functools.partial(VAE(VAE_CONFIG).init), jax.random.key(0), jnp.zeros((1, 3, 1, 16, 16))
    )["params"]
    save_diffusers(
        folder / "diffusers",
        transformer=(TRANSFORMER, random_like(transformer, seed=seed)),
        vae=(VAE_CONFIG, random_like(vae, seed=seed + 1)),
        dtype=np.float16,
    )
    import_diffusers(folder / "diffusers", folder / "converted")
    return folder / "converted"
