"""Makes the golden files from diffusers: `python -m tests.golden.make` (torch and diffusers)."""

import dataclasses
import pathlib

import numpy as np
import torch

from tests.cogvideox.diffusers_models import TINY, random_transformer, state

FOLDER = pathlib.Path(__file__).parent


def make_transformer() -> None:
    """A tiny transformer with float16 weights: inputs, and diffusers' float32 output."""
    config = dataclasses.replace(TINY, num_attention_heads=1, num_layers=2, time_embed_dim=16)
    model = random_transformer(config, seed=1).half().float()
    rng = np.random.default_rng(0)
    arrays = {
        "latents": rng.standard_normal((2, 3, 16, 4, 6), np.float32),
        "text": rng.standard_normal((2, 5, 24), np.float32),
        "timesteps": np.array([999, 20]),
    }
    with torch.no_grad():
        velocity = model(*map(torch.tensor, arrays.values())).sample.numpy()
    weights = {f"weights/{key}": x.astype(np.float16) for key, x in state(model).items()}
    sizes = {f"config/{key}": x for key, x in dataclasses.asdict(config).items()}
    np.savez_compressed(FOLDER / "transformer.npz", **arrays, velocity=velocity, **weights, **sizes)


if __name__ == "__main__":
    make_transformer()
