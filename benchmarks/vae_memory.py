"""Memory that the VAE takes, whole and a tile: `python benchmarks/vae_memory.py [--dtype DTYPE]`.

The temporaries that XLA plans for the published sizes (`VAEConfig()`) and one clip, from shapes
alone: nothing is allocated and nothing runs. Inputs, outputs and weights are counted apart. A tile
is what `vae_tiling` gives the VAE at diffusers' sizes, 240x360 pixels, half of 480x720 each way.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig

# (frames, height, width)
SIZES = [(17, 256, 256), (49, 256, 256), (17, 240, 360), (49, 240, 360), (49, 480, 720)]
PARTS = ("encode", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--size", nargs=3, type=int, metavar=("FRAMES", "HEIGHT", "WIDTH"), action="append"
    )
    args = parser.parse_args()
    for part in args.parts:
        for size in args.size or SIZES:
            print(measure(part, *size, dtype=jnp.dtype(args.dtype)), flush=True)


def measure(part: str, frames: int, height: int, width: int, *, dtype: jnp.dtype) -> str:
    """A line: what is computed, its temporaries, inputs without weights and outputs, in MiB."""
    vae = VAE(VAEConfig(), dtype)
    image = jax.ShapeDtypeStruct((1, 3, 1, 16, 16), dtype)
    params = jax.eval_shape(vae.init, jax.random.key(0), image)
    video = jax.ShapeDtypeStruct((1, 3, frames, height, width), dtype)
    latents = jax.ShapeDtypeStruct((1, 16, (frames - 1) // 4 + 1, height // 8, width // 8), dtype)
    x = video if part == "encode" else latents

    def run(params, x):
        return vae.apply(params, x, method=part)

    memory = jax.jit(run).lower(params, x).compile().memory_analysis()
    mib = 1 << 20
    return (
        f"{part} {frames} frames of {height}x{width}, {dtype}: temporaries "
        f"{memory.temp_size_in_bytes / mib:,.0f} MiB, input {x.size * dtype.itemsize / mib:,.0f}, "
        f"output {memory.output_size_in_bytes / mib:,.0f}"
    )


if __name__ == "__main__":
    main()
