"""What benchmarks against torch share: a model of both, weights that cross over, timing in turn."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.cogvideox.graft_config import GraftConfig
from roam_jax.cogvideox.names import TensorName
from roam_jax.contracts import FRAMES_PER_LATENT, Params, TimeSpec
from roam_jax.train import names


def params_from_torch(wanted: Iterable[TensorName], state: Mapping[str, Any]) -> Params:
    """Our parameter tree, on the device, from a torch model's `state_dict()`."""
    flat = {}
    for name in wanted:
        layers = [name.to_ours(state[key].numpy()) for key in name.keys]
        flat[name.target] = jax.device_put(np.stack(layers) if name.stacked else layers[0])
    return names.unflatten(flat)


def bare_graft(
    config: TransformerConfig, latents: tuple[int, ...], *, rounds: int, gate: str
) -> GraftedTransformer:
    """Loops and a pooled decoder on the backbone, without the cells that torch's side lacks.

    Args:
        config: of the backbone.
        latents: shape (B, F, C, H, W) of its input.
        rounds: of every block.
        gate: `loop.gate`.
    """
    _, frames, _, height, width = latents
    layout = graft_layout(
        time=TimeSpec(frames=FRAMES_PER_LATENT * (frames - 1) + 1, t_current=1),
        rows=height // config.patch_size,
        columns=width // config.patch_size,
        width=config.width,
        text_length=config.max_text_seq_length,
        new=NewRegions(actions=False),
    )
    return GraftedTransformer(
        config=config,
        graft_config=GraftConfig(rounds=rounds, gate=gate, decoder="pooled"),
        layout=layout,
        topology=graft_topology(layout),
    )


def relative_error(ours: Iterable[Any], theirs: Iterable[Any]) -> float:
    """Relative L2 distance of two lists of arrays, taken as one vector."""
    ours, theirs = (np.concatenate([np.ravel(np.float64(x)) for x in xs]) for xs in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing.

    Args:
        seconds: of each run, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle run."""
        return statistics.median(self.seconds)

    def __str__(self):
        low, high = min(self.seconds), max(self.seconds)
        return f"{self.median:.3f} s ({low:.3f} to {high:.3f})"


def alternate(runs: Sequence[Callable[[], Any]], *, repeats: int) -> tuple[list[Timing], list[Any]]:
    """Times callables in turn, A B A B ..., all of them compiled before.

    Returns:
        Their timings, and what each returned last.
    """
    seconds, results = [[] for _ in runs], [None for _ in runs]
    for _ in range(repeats):
        for i, run in enumerate(runs):
            began = time.perf_counter()
            results[i] = run()
            seconds[i].append(time.perf_counter() - began)
    return [Timing(tuple(taken)) for taken in seconds], results


def report(
    name: str,
    errors: Mapping[str, float],
    ours: Timing,
    theirs: Timing,
    *,
    tolerance: float,
    required: float,
) -> bool:
    """Prints errors, both timings and the median ratio of neighbours, then the same as JSON.

    Returns:
        Whether every error is within `tolerance` and the ratio within `required`.
    """
    ratios = sorted(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))
    ratio = statistics.median(ratios)
    listed = ", ".join(f"{key} {error:.1e}" for key, error in errors.items())
    print(f"{name}\n  relative L2 errors: {listed} (required: {tolerance:.0e})")
    print(f"  ours   {ours}\n  torch  {theirs}")
    print(f"  ratio  {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), required: {required:.2f}")
    seconds = {"ours": ours.seconds, "torch": theirs.seconds}
    print(json.dumps({"name": name, "errors": errors, "seconds": seconds, "ratio": ratio}))
    return max(errors.values()) <= tolerance and ratio <= required


def machine() -> str:
    """Processor, cores and versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = [f"{p} {importlib.metadata.version(p)}" for p in ("jax", "torch", "diffusers")]
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else platform.processor()}, {cores} cores, {', '.join(packages)}"
