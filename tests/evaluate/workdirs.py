"""Workdirs as runs leave them, written without training."""

from __future__ import annotations

import copy
import json
import pathlib

import numpy as np

from roam_jax.video_files import write_video
from roam_jax.viz.figure import picture

CONFIG = {
    "seed": 0,
    "freeze": "full",
    "optim": {"lr": 0.001},
    "train": {"task": "vae", "steps": 40, "log_every": 2},
}
PROVENANCE = {
    "git_commit": "abc",
    "packages": {"jax": "0.10"},
    "fingerprints": {"data": "0123456789abcdef"},
}


def loss(step, seed, lr=0.001):
    """Of a step; the median of seeds 0, 1, 2 is 10 / step + lr."""
    return 10 / step + lr + 0.1 * (seed - 1)


def lines(seed, lr, *, last=40, shared=False):
    rows = [
        {
            **({"seed": seed} if shared else {}),
            "step": step,
            "loss": loss(step, seed, lr),
            "loss/bucket": None if step == 4 else float(step),
            "grad_norm": 0.5,
            "seconds_per_step": 0.25,
            **({"eval/psnr": 20.0 + seed} if step % 20 == 0 else {}),
        }
        for step in range(2, last + 1, 2)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_config(folder: pathlib.Path, *, seed=0, lr=0.001, fingerprint=None) -> None:
    folder.mkdir(parents=True)
    config, origin = copy.deepcopy(CONFIG), copy.deepcopy(PROVENANCE)
    config["seed"], config["optim"]["lr"] = seed, lr
    if fingerprint:
        origin["fingerprints"]["data"] = fingerprint
    saved = {"config": config, "provenance": origin}
    (folder / "config.json").write_text(json.dumps(saved))
    for step in (20, 40):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        (folder / "checkpoints" / str(step) / "state").write_bytes(bytes(2**20))


def write_run(folder: pathlib.Path, *, seed=0, lr=0.001, last=40, fingerprint=None) -> pathlib.Path:
    """A run alone."""
    write_config(folder, seed=seed, lr=lr, fingerprint=fingerprint)
    (folder / "metrics.jsonl").write_text(lines(seed, lr, last=last))
    return folder


def write_seeds(folder: pathlib.Path, seeds, *, lr=0.001) -> pathlib.Path:
    """A folder of --seeds."""
    for seed in seeds:
        write_config(folder / "seeds" / str(seed), seed=seed, lr=lr)
    text = "".join(lines(seed, lr, shared=True) for seed in seeds)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def write_evaluation(folder: pathlib.Path, *, step=40, psnr=20.0, kind="", media=False) -> None:
    """A report, and if asked for a picture and a video."""
    (folder / "eval").mkdir(exist_ok=True)
    figures = {
        "windows": 4,
        "episodes": 2,
        "psnr": {"mean": psnr, "interval": [psnr - 1, psnr + 1]},
        "mean_colour_psnr": 10.0,
        "psnr_gain": psnr - 10,
    }
    report = {"step": step, "task": "vae", "rounds": [1], "splits": {"val": figures}}
    (folder / "eval" / f"{step}{kind}.json").write_text(json.dumps(report))
    if media:
        with picture(folder / "eval" / f"{step}_val_frames.png", width=1, height=1):
            pass
        frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
        write_video(folder / "eval" / f"{step}_val.mp4", frames, rate=4)
