"""What the weights that come with the package are worth, held to bounds set after one trial."""

import pathlib

import jax
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.cogvideox.load import load_transformer, load_vae
from roam_jax.evaluate.run import make_evaluation
from roam_jax.tasks.backbone import tiny_weights
from roam_jax.tasks.build import build

ROOT = pathlib.Path(__file__).resolve().parent.parent
ASSETS = ROOT / "roam_jax" / "assets" / "tiny_cogvideox"
# Decibels above the mean colour of each frame; measured when the weights were made: 6.5 and 8.3.
EMBEDDED_GAIN, REAL_GAIN = 6.0, 7.5


def test_the_files_are_small_and_float16():
    for part, limit in {"vae": 2_000_000, "transformer": 4_000_000}.items():
        (weights,) = (ASSETS / part).glob("*.safetensors")
        assert weights.stat().st_size <= limit
    for load in (load_transformer, load_vae):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(load(tiny_weights())[1])} == {"float16"}


def vae_gain(root: str) -> float:
    config = load_config(str(ROOT / "configs/tiny_vae.py"))
    config.data.root, config.backbone.path = root, str(tiny_weights())
    config.eval.windows = 32
    experiment = build(config)
    metrics = make_evaluation(experiment).metrics(load_vae(tiny_weights())[1])
    print(f"{root}: {metrics['psnr']:.2f} dB, {metrics['psnr_gain']:.2f} above the mean colour")
    return metrics["psnr_gain"]


def test_the_vae_reconstructs_embedded_frames_it_never_saw():
    assert vae_gain("embedded") >= EMBEDDED_GAIN


def test_the_vae_reconstructs_real_frames(bridge_root):
    assert vae_gain(str(bridge_root)) >= REAL_GAIN


@pytest.mark.parametrize("mode", ["continued", "generated"])
def test_the_backbone_beats_predicting_zero_at_every_timestep(mode):
    config = load_config(str(ROOT / "configs/tiny_backbone.py"))
    config.data.root = "embedded"
    config.eval.windows, config.data.encode_once = 32, 0
    path = tiny_weights()
    params = {**load_transformer(path)[1], "vae": load_vae(path)[1]}
    report = make_evaluation(build(config)).report(params, rounds=())
    buckets = report["val"]["video"][mode]["buckets"]
    assert len(buckets) == config.eval.buckets
    for bucket in buckets:
        assert bucket["mse"]["mean"] < bucket["zero_mse"], bucket
