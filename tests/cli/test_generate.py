"""`generate` as a user types it: a prompt against diffusers, files, continuations, bad input."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from roam_jax.__main__ import main
from roam_jax.cli import generate_video, generate_window
from roam_jax.cogvideox.pipeline import Pipeline, to_pixels
from roam_jax.data.embedded import language_embedding
from roam_jax.diffusion.samplers import Sampler
from roam_jax.evaluate.continuation import ContinuationSampler
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.saved import open_saved
from roam_jax.tasks.build import build
from roam_jax.video_files import read_frames
from tests.cogvideox.pipelines import LATENTS, SIZE, write_pipeline
from tests.cogvideox.text_models import their_embeddings
from tests.evaluate.conftest import make_config, make_params, write_run, write_toy
from tests.test_commands import command

PROMPT, NEGATIVE = "close the drawer", "a panda"
SETTING = "--config.eval.windows=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def theirs(folder):
    return write_pipeline(folder)


@pytest.fixture(scope="module")
def model(theirs, folder):
    return folder / "converted"


@pytest.fixture
def written(monkeypatch):
    """Frames before a lossy format takes them."""
    found = []
    for module in (generate_video, generate_window):
        monkeypatch.setattr(
            module,
            "write_video",
            lambda path, frames, *, rate, write=module.write_video: (
                found.append((frames, rate)),
                write(path, frames, rate=rate),
            ),
        )
    return found


def generate(*arguments) -> int:
    return command(main, "generate", *arguments)


def test_a_prompt_gives_the_frames_of_diffusers(theirs, model, folder, tmp_path, written, capsys):
    """Tokenizer, text encoder, guidance, sampler and VAE, from the noise of the seed."""
    out = tmp_path / "video.mp4"
    arguments = ["--negative_prompt", NEGATIVE, "--steps", 3, "--guidance", 4, "--seed", 7]
    assert generate("--model", model, "--prompt", PROMPT, "--out", out, *arguments) == 0
    text, empty = (
        torch.from_numpy(row[None])
        for row in their_embeddings(folder / "diffusers", [PROMPT, NEGATIVE], length=5)
    )
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), 0), LATENTS)
    expected = theirs(
        prompt_embeds=text,
        negative_prompt_embeds=empty,
        latents=torch.from_numpy(np.array(noise)),
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="np",
        **SIZE,
    ).frames[0]
    ((frames, rate),) = written
    assert rate == 8 and np.abs(frames - expected * 255).max() <= 0.5 + 255 * 1e-3
    assert read_frames(out).shape == (9, 48, 80, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sampling: ddim, 3 steps, guidance 4, seed 7"
    assert lines[1] == f"video:    {out}: 9 frames of 48x80 pixels, 8 frames a second"
    assert lines[2].startswith("time:     ") and "s a step after compilation" in lines[2]
    assert lines[3].startswith("memory:   at most ")


def test_embeddings_of_a_file_and_another_size(model, folder, tmp_path, written):
    found = their_embeddings(folder / "diffusers", [PROMPT, ""], length=5).astype(np.float16)
    path, prompts = tmp_path / "text.safetensors", json.dumps([PROMPT, ""])
    save_file({"embeddings": found}, path, metadata={"prompts": prompts})
    size = ["--frames", 5, "--size", "32x16", "--steps", 2, "--sampler", "dpm", "--rate", 10]
    arguments = ["--model", model, "--prompt", PROMPT, "--embeddings", path, *size]
    out = tmp_path / "video.gif"
    assert generate(*arguments, "--dynamic_guidance", "--out", out) == 0
    pipeline = Pipeline.load(model)
    text, empty = found.astype(np.float32)[:, None]
    latents = pipeline.sample(
        text,
        empty_text=empty,
        size=generate_video.VideoSize(5, 32, 16),
        sampler=Sampler("dpm", 2),
        dynamic_guidance=True,
    )
    ((frames, rate),) = written
    np.testing.assert_array_equal(frames, to_pixels(pipeline.decode(latents))[0])
    assert rate == 10 and read_frames(out).shape == (5, 32, 16, 3)


def test_a_model_of_sentence_vectors_continues_given_frames(weights, tmp_path, written, capsys):
    """Without text encoder and trained on the embedded data: no empty prompt, so no guidance."""
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    arguments = ["--first_frames", tmp_path, "--first_count", 5, "--clean_timestep", "zero"]
    out = tmp_path / "video.gif"
    command_line = ["--model", weights, "--prompt", PROMPT, "--steps", 2, "--out", out]
    assert generate(*command_line, *arguments) == 0
    assert "ddim, 2 steps, no guidance, seed 0" in capsys.readouterr().out
    pipeline = Pipeline.load(weights)
    latents = pipeline.sample(
        language_embedding(PROMPT)[None, None],
        guidance=1.0,
        sampler=Sampler("ddim", 2),
        first_frames=read_frames(tmp_path, count=5)[None],
        clean_timestep="zero",
    )
    np.testing.assert_array_equal(written[0][0], to_pixels(pipeline.decode(latents))[0])


@pytest.fixture(scope="module")
def workdir(weights, folder):
    experiment = build(make_config(weights, write_toy(folder / "toy" / "1.0.0", seed=0)))
    return write_run(folder / "run", experiment, make_params(experiment), scales={5: 1.0})


def test_a_window_is_continued_as_in_an_evaluation(workdir, tmp_path, written, capsys, monkeypatch):
    sampled_rows, sample = {}, generate_window._sample

    def follow(*arguments, **options):
        found, seconds = sample(*arguments, **options)
        sampled_rows.update(found)
        return found, seconds

    monkeypatch.setattr(generate_window, "_sample", follow)
    out = tmp_path / "future.mp4"
    arguments = ["--window", 2, "--steps", 2, "--sampler", "dpm", "--rounds", 1]
    assert generate("--workdir", workdir, "--out", out, *arguments, SETTING) == 0
    run = open_saved(workdir)
    source, indices = run.experiment.splits["val"], np.full(8, 2, np.int32)  # one a device
    batch = {name: np.stack([value] * 8) for name, value in source[2].items()}
    predictor = GraftPredictor(run.experiment.model)
    windows = predictor.encode(run.params, batch)
    sampler = ContinuationSampler(predictor, Sampler("dpm", 2))
    frames = np.asarray(sampler.sample(run.params, windows, indices, rounds=1))
    # Each tile is eight times as large, within a border of 3 pixels; recorded, then sampled.
    ((video, rate),) = written
    recorded, sampled = (video[:, -131:-3:8, x : x + 128 : 8] for x in (3, 137))
    np.testing.assert_array_equal(recorded, batch["frames"][0])
    assert np.abs(sampled.astype(int) - frames[0]).max() <= 1
    assert rate == 5 and read_frames(out).shape == video.shape

    report = json.loads((tmp_path / "future.actions.json").read_text())
    scale = source.statistics.actions.unnormalise
    actions = np.asarray(sampled_rows["actions"][0])
    assert actions.shape == (4, 7)
    np.testing.assert_allclose(report["sampled"], scale(actions), rtol=1e-6)
    np.testing.assert_allclose(report["recorded"], scale(batch["action_chunk"][0]), rtol=1e-6)
    assert report["names"][0] == "x" and report["units"][:1] + report["units"][-1:] == [
        "m",
        "1 = open",
    ]
    printed = capsys.readouterr().out
    assert "window:   2, val episode 0, from step 2: " in printed
    assert f"actions:  {tmp_path / 'future.actions.json'}: 4 of x, y, z, roll, pitch" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected --model DIR (with --prompt) or --workdir RUN, one of the two"),
        (["--model", "MODEL"], "--model without --prompt"),
        (["--workdir", "run", "--prompt", "a"], "--prompt does not go with --workdir"),
        (["--model", "MODEL", "--prompt", "a", "--rounds", 2], "--rounds does not go with --model"),
        (
            ["--model", "MODEL", "--prompt", "a", "--config.eval.windows=1"],
            "--config.eval.windows does not go with --model",
        ),
        (["--model", "nowhere", "--prompt", "a"], "nowhere/transformer: no manifest.json"),
        (
            ["--model", "MODEL", "--prompt", "a", "--frames", 48],
            "frames = 48: the VAE has 4n + 1 frames, the nearest is 45 or 49",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--size", "40x80"],
            "height = 40: expected a multiple of 16 pixels, the nearest is 32 or 48",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--size", "big"],
            "argument --size: 'big': expected height x width in pixels, such as 480x720",
        ),
        (["--model", "MODEL", "--prompt", "a", "--steps", 0], "sampling steps = 0: expected 1.."),
        (
            ["--model", "MODEL", "--prompt", "a", "--first_count", 5],
            "--first_count without --first_frames",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--first_frames", "gone"],
            "gone: no such file or folder",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--embeddings", "gone"],
            "gone: no text embeddings",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--tile", "100x200"],
            "--tile 100x200: expected multiples of 48x40 pixels",
        ),
        (["--model", "MODEL", "--prompt", "a", "--rate", 0], "rate = 0.0 frames a second"),
        (["--workdir", "nowhere"], "nowhere"),
        (["--workdir", "RUN", "--window", 9], "--window 9: split val has the windows 0..3"),
        (["--workdir", "RUN", "--split", "test"], "--split = 'test': expected one of train, val"),
        (["--workdir", "RUN", "--rounds", 3], "extrapolate"),
    ],
)
def test_bad_input_ends_with_one_message(model, workdir, tmp_path, capsys, arguments, message):
    places = {"MODEL": model, "RUN": workdir}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert generate("--out", tmp_path / "video.mp4", *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and message in printed
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_video_is_refused_first(model, tmp_path, capsys):
    for out in ("video.avi", "gone/video.mp4"):
        assert generate("--model", model, "--prompt", "a", "--out", tmp_path / out) == 2
        assert f"error: {tmp_path / out}: " in capsys.readouterr().err


def test_text_that_the_model_cannot_have_is_refused(model, tmp_path, capsys):
    path = tmp_path / "text.safetensors"
    zeros = np.zeros((1, 5, 24), np.float16)
    save_file({"embeddings": zeros}, path, metadata={"prompts": json.dumps(["a"])})
    arguments = ["--model", model, "--embeddings", path, "--out", tmp_path / "video.gif"]
    assert generate(*arguments, "--prompt", "a") == 2
    assert (
        "text.safetensors: no embedding of 1 instructions, such as ['']" in capsys.readouterr().err
    )
    save_file({"embeddings": zeros[:, :2]}, path, metadata={"prompts": json.dumps(["a"])})
    assert generate(*arguments, "--prompt", "a", "--guidance", 1) == 2
    assert "embeddings of 2 tokens x 24, the model reads 5 x 24" in capsys.readouterr().err
