"""VAE encode and decode against torch: `python benchmarks/vae_speed.py [--repeats 3]`.

The published sizes (`VAEConfig()`) with random weights, float32, one clip. The other side is
diffusers' `AutoencoderKLCogVideoX` with the same weights, without gradients; the two take turns in
one process, and their outputs are compared. The line after each comparison is JSON.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

import jax
import numpy as np
import torch
from against_torch import alternate, machine, params_from_torch, relative_error, report
from diffusers import AutoencoderKLCogVideoX

from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names
from roam_jax.contracts import Params

TOLERANCE = 1e-5
RATIO = 2.5
PARTS = ("encode", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()

    print(machine())
    config = VAEConfig()
    torch.manual_seed(0)
    model = AutoencoderKLCogVideoX.from_config(config.to_json()).eval()
    params = params_from_torch(vae_names(config), model.state_dict())
    rng = np.random.default_rng(0)
    shape = (1, config.in_channels, args.frames, args.size, args.size)
    video = rng.uniform(-1, 1, shape).astype(np.float32)

    @torch.no_grad()
    def torch_encode(video: torch.Tensor) -> torch.Tensor:
        return model.encode(video).latent_dist.mean

    @torch.no_grad()
    def torch_decode(latents: torch.Tensor) -> torch.Tensor:
        return model.decode(latents).sample

    def encode(params: Params, video: jax.Array) -> jax.Array:
        return VAE(config).apply({"params": params}, video, method="encode")[0]

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        return VAE(config).apply({"params": params}, latents, method="decode")

    latents = jax.eval_shape(encode, params, video)
    latents = rng.standard_normal(latents.shape, np.float32)
    sides = {"encode": (encode, torch_encode, video), "decode": (decode, torch_decode, latents)}
    within = []
    for name in args.parts:
        ours, theirs, x = sides[name]
        ours = functools.partial(jax.jit(ours).lower(params, x).compile(), params)
        within.append(compare(name, ours, theirs, x, repeats=args.repeats))
    sys.exit(0 if all(within) else 1)


def compare(
    name: str,
    ours: Callable[[jax.Array], jax.Array],
    theirs: Callable[[torch.Tensor], torch.Tensor],
    x: np.ndarray,
    *,
    repeats: int,
) -> bool:
    """Times one part of the VAE on both sides; whether it is equal and fast enough."""
    on_device, tensor = jax.device_put(x), torch.tensor(x)
    runs = [lambda: ours(on_device).block_until_ready(), lambda: theirs(tensor)]
    timings, (output, expected) = alternate(runs, repeats=repeats)
    errors = {"output": relative_error([output], [expected])}
    return report(name, errors, *timings, tolerance=TOLERANCE, required=RATIO)


if __name__ == "__main__":
    main()
