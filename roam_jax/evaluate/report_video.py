"""The part of a report on sampled continuations, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from roam_jax.evaluate.rounds import round_title

# Metric -> its title, and decimals that tell something.
METRICS = {"psnr": ("PSNR [dB]", 2), "ssim": ("SSIM", 4)}
# What sampled frames are compared with -> its title.
REFERENCE_TITLES = {
    "copy": "last frame, copied",
    "copy_vae": "the copy by the VAE",
    "vae": "the truth by the VAE",
}


def continuation_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the "continuation" of a split; docs/evaluate.md says what its figures mean."""
    yield (
        f"  sampled continuations of {figures['windows']} windows ({figures['sampler']}, "
        f"{figures['steps']} steps): predicted frames against the true ones"
    )
    rounds = {round_title(n, one, mark=" *"): one for n, one in figures["rounds"].items()}
    rows = {**rounds, **{title: figures[name] for name, title in REFERENCE_TITLES.items()}}
    rows |= {f"{title} - copy": one["minus_copy"] for title, one in rounds.items()}
    latents = np.unique(figures["latents"])
    for metric, (title, decimals) in METRICS.items():
        columns = "".join(f"{f'latent {latent}':>10}" for latent in latents)
        yield f"    {title:<24}{'mean [95 % of episodes]':<32}{columns}"
        for name, one in rows.items():
            means = "".join(f"{by['mean']:>10.{decimals}f}" for by in one[metric]["latents"])
            yield f"      {name:<22}{interval(one[metric], decimals):<32}{means}"
    for metric, reason in figures["absent"].items():
        yield f"    {metric.upper()}: not measured, {reason}"


def interval(estimate: Mapping[str, Any], decimals: int = 4) -> str:
    """A mean with its interval: "0.1234 [0.1000, 0.1500]"."""
    ends = estimate["interval"]
    text = "one episode, no interval"
    if ends is not None:
        text = ", ".join(f"{end:.{decimals}f}" for end in ends)
    return f"{estimate['mean']:.{decimals}f} [{text}]"
