"""A very small CogVideoX pipeline of diffusers, and the same weights in a converted folder."""

import pathlib

import numpy as np

from roam_jax.cogvideox.importing import import_diffusers
from tests.cogvideox.diffusers_models import TINY, random_transformer
from tests.cogvideox.text_models import write_text_parts
from tests.diffusion.test_schedule import SETTINGS
from tests.tiny_weights import VAE_CONFIG

# The size of TINY: 9 frames of 48x80 pixels, 3 latent frames of 6x10.
LATENTS = (1, 3, 16, 6, 10)
SIZE = {"num_frames": 9, "height": 48, "width": 80}


def random_vae(seed: int = 0):
    """A diffusers VAE whose frames are neither grey nor saturated."""
    import torch
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(seed)
    vae = AutoencoderKLCogVideoX.from_config(VAE_CONFIG.to_json()).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.05))
    return vae


def write_pipeline(folder: pathlib.Path):
    """folder/diffusers, folder/converted, and diffusers' pipeline itself, whose text is given."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    pipeline = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=random_vae(),
        transformer=random_transformer(TINY),
        scheduler=CogVideoXDDIMScheduler(**SETTINGS),
    )
    for part in ("transformer", "vae", "scheduler"):
        getattr(pipeline, part).save_pretrained(folder / "diffusers" / part)
    write_text_parts(folder / "diffusers")
    import_diffusers(folder / "diffusers", folder / "converted")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def texts(seed: int = 0) -> np.ndarray:
    """Embeddings of an empty prompt and of a prompt."""
    shape = 2, 1, TINY.max_text_seq_length, TINY.text_embed_dim
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
