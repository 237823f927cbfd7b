"""The pipeline against diffusers, and at full size: `python benchmarks/pipeline.py [--parts tiny]`.

- tiny: a small CogVideoX with random weights in diffusers and here, one clip, 226 text tokens,
  guidance 6, float32. Both sides take turns in one process from the same noise, denoising and VAE
  apart, and their results are compared;
- full: CogVideoX-2B and its VAE at the published sizes with random float16 weights on the disk
  (3.8 GB, for a while twice). `python -m roam_jax generate` makes one short clip of them in a
  process of its own. The largest resident memory is what the kernel noted of that process (VmHWM):
  pages of the mapped weights count, although the system takes them back when it needs them.

Prints a line of JSON a part; the exit code is 1 where a figure is beyond what is required.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from against_torch import alternate, machine, relative_error, report

PARTS = ("tiny", "full")
STEPS, GUIDANCE = 10, 6.0
# Of denoising; the VAE is reported apart.
RATIO, VAE_RATIO = 1.0, 2.5
# Guidance multiplies the rounding of two passes by 6, step after step.
TOLERANCE = 1e-5
GB = 1e9
FULL_MEMORY_GB = 9.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=9, help="of the tiny part's timings")
    parser.add_argument("--frames", type=int, default=9, help="of the full part's clip")
    parser.add_argument("--size", default="192x192", help="of the full part's clip")
    parser.add_argument("--steps", type=int, default=2, help="of the full part")
    parser.add_argument("--dir", type=pathlib.Path, help="where weights are kept; default: removed")
    args = parser.parse_args()
    print(machine())
    within = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or pathlib.Path(temporary)
        if "tiny" in args.parts:
            within.append(measure_tiny(folder / "tiny", repeats=args.repeats))
        if "full" in args.parts:
            options = ["--frames", args.frames, "--size", args.size, "--steps", args.steps]
            within.append(measure_full(folder / "full", options))
    sys.exit(0 if all(within) else 1)


def measure_tiny(folder: pathlib.Path, *, repeats: int) -> bool:
    """A transformer of 6 blocks 256 wide, 9 frames of 128x128 pixels."""
    import diffusers
    import torch

    from roam_jax.cogvideox.config import TransformerConfig
    from roam_jax.cogvideox.importing import import_diffusers
    from roam_jax.cogvideox.pipeline import Pipeline
    from roam_jax.cogvideox.vae_config import VAEConfig

    transformer = TransformerConfig(
        num_attention_heads=4, num_layers=6, text_embed_dim=512, sample_width=16,
        sample_height=16, sample_frames=9,
    )  # fmt: skip
    vae = VAEConfig(block_out_channels=(32, 64, 64, 128), layers_per_block=1)
    torch.manual_seed(0)
    theirs = diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKLCogVideoX.from_config(vae.to_json()).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel.from_config(transformer.to_json()).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(**_scheduler_settings(folder / "settings")),
    )
    theirs.set_progress_bar_config(disable=True)
    for part in ("transformer", "vae", "scheduler"):
        getattr(theirs, part).save_pretrained(folder / "diffusers" / part)
    import_diffusers(folder / "diffusers", folder / "converted")
    ours = Pipeline.load(folder / "converted", steps=STEPS)

    rng = np.random.default_rng(0)
    text, empty = rng.standard_normal((2, 1, *ours.text_shape), np.float32)
    shape = ours.default_size.latent_shape(transformer, vae)
    noise = rng.standard_normal((1, *shape), np.float32)
    tensors = {
        "prompt_embeds": torch.from_numpy(text),
        "negative_prompt_embeds": torch.from_numpy(empty),
        "latents": torch.from_numpy(noise),
    }

    def their_latents() -> np.ndarray:
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        return theirs(**tensors, **options, output_type="latent").frames.numpy()

    def our_latents() -> np.ndarray:
        return np.asarray(ours.sample(text, empty_text=empty, guidance=GUIDANCE, noise=noise))

    @torch.no_grad()
    def their_frames() -> np.ndarray:
        video = theirs.decode_latents(torch.from_numpy(latents))
        return theirs.video_processor.postprocess_video(video, output_type="np")

    latents = their_latents()
    denoised = _compare(
        f"denoising, {STEPS} steps", our_latents, their_latents, required=RATIO, repeats=repeats
    )
    decoded = _compare(
        "VAE decoding", lambda: ours.decode(latents), their_frames, required=VAE_RATIO,
        repeats=repeats,
    )  # fmt: skip
    return denoised and decoded


def _compare(
    name: str,
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    *,
    required: float,
    repeats: int,
) -> bool:
    ours(), theirs()  # compilation, and what torch keeps for the next time
    timings, (found, expected) = alternate([ours, theirs], repeats=repeats)
    errors = {"output": relative_error([found], [expected])}
    return report(name, errors, *timings, tolerance=TOLERANCE, required=required)


def _scheduler_settings(folder: pathlib.Path) -> dict:
    """Those of CogVideoX-2B."""
    from roam_jax.cogvideox.scheduler import write_scheduler

    write_scheduler(folder)
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def measure_full(folder: pathlib.Path, options: list) -> bool:
    """One clip by the command that a user types; the peak is read as the process ends."""
    from full_size import alone

    if not (folder / "converted").exists():
        alone(write_full_size, folder)
    command = [
        sys.executable, "-m", "roam_jax", "generate", "--model", folder / "converted",
        "--prompt", "a prompt", "--embeddings", folder / "text.safetensors",
        "--out", folder / "clip.mp4", *options,
    ]  # fmt: skip
    command = [str(part) for part in command]
    print(" ".join(command[1:]), flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    printed = process.stdout.read()
    print(printed)
    if process.returncode:
        return False
    found = re.search(r"time: +(\S+) s a step after compilation, decoding (\S+) s", printed)
    figures = {
        "peak_gb": round(peak / GB, 3),
        "required_gb": FULL_MEMORY_GB,
        "seconds_per_step": float(found[1]),
        "decoding_seconds": float(found[2]),
        "seconds": round(seconds, 1),
    }
    print(json.dumps({"name": "full", **figures}))
    return 0 < figures["peak_gb"] <= FULL_MEMORY_GB


def _high_water(pid: int) -> int:
    """Most bytes that a process has had in memory; 0 when it has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


def write_full_size(folder: pathlib.Path) -> None:
    """Random weights of the published sizes, converted, and text embeddings of two prompts."""
    import diffusers
    import torch
    from full_size import CONVERTED, SOURCE, write_weights
    from safetensors.numpy import save_file

    from roam_jax.cogvideox.importing import import_diffusers
    from roam_jax.cogvideox.vae_config import VAEConfig

    write_weights(folder)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX.from_config(VAEConfig().to_json())
    vae.half().save_pretrained(folder / SOURCE / "vae")
    import_diffusers(folder / SOURCE, folder / CONVERTED)
    shutil.rmtree(folder / SOURCE)
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((2, 226, 4096), np.float32).astype(np.float16)
    prompts = json.dumps(["a prompt", ""])
    save_file(
        {"embeddings": embeddings}, folder / "text.safetensors", metadata={"prompts": prompts}
    )


if __name__ == "__main__":
    main()
