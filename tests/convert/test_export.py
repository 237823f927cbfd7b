"""A whole pipeline in and out again: every bit, and diffusers has nothing to complain about."""

import json
import logging
import shutil
import warnings

import numpy as np
import pytest

from convert.__main__ import main
from roam_jax.cli.arguments import load_config
from roam_jax.cogvideox.components import COMPONENTS
from roam_jax.train.workdir import Workdir
from tests.convert.pipelines import PROMPTS, stored_bits, write_pipeline

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "src")


def there_and_back(src, folder):
    main(["import", "--src", str(src), "--dst", str(folder / "converted")])
    main(["export", "--src", str(folder / "converted"), "--dst", str(folder / "back")])
    return folder / "back"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_bit_comes_back(tmp_path, dtype):
    src = write_pipeline(tmp_path / "src", dtype=dtype, shards=dtype == "float16")
    back = there_and_back(src, tmp_path)
    shards = {name: len(list((src / name).glob("*.safetensors"))) for name in COMPONENTS}
    assert (min(shards.values()) > 1) == (dtype == "float16")
    for name in COMPONENTS:
        expected, found = stored_bits(src / name), stored_bits(back / name)
        assert found.keys() == expected.keys()
        assert {str(dtype) for dtype, *_ in expected.values()} == {f"torch.{dtype}"}
        for key, tensor in expected.items():
            assert found[key] == tensor, key
    for file in ("tokenizer/spiece.model", "tokenizer/tokenizer_config.json",
                 "scheduler/scheduler_config.json"):  # fmt: skip
        assert (back / file).read_bytes() == (src / file).read_bytes()


class Complaints(logging.Handler):
    """Whatever the packages log from warnings up."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


@pytest.fixture
def complaints():
    handler = Complaints()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield handler.found
    for logger in loggers:
        logger.removeHandler(handler)


def test_diffusers_loads_it_without_a_warning(pipeline, tmp_path, capsys, complaints):
    import torch

    back = there_and_back(pipeline, tmp_path)
    assert f"{back}/model_index.json: CogVideoXPipeline" in capsys.readouterr().out
    ours, theirs = (
        # Without this it warns that a package is missing, whatever it loads.
        diffusers.CogVideoXPipeline.from_pretrained(path, low_cpu_mem_usage=False)
        for path in (back, pipeline)
    )
    assert complaints == []
    for name in COMPONENTS:
        found, expected = (getattr(p, name).state_dict() for p in (ours, theirs))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert ours.scheduler.config == theirs.scheduler.config
    assert ours.scheduler.config.snr_shift_scale == 2.5
    assert type(ours.scheduler) is diffusers.CogVideoXDPMScheduler
    tokens = [p.tokenizer(PROMPTS)["input_ids"] for p in (ours, theirs)]
    assert tokens[0] == tokens[1] and len(tokens[0][0]) > 3
    videos = [
        p(PROMPTS[0], height=16, width=16, num_frames=1, num_inference_steps=1, output_type="np",
          max_sequence_length=5, generator=torch.Generator().manual_seed(0)).frames
        for p in (ours, theirs)
    ]  # fmt: skip
    np.testing.assert_array_equal(*videos)


@pytest.mark.parametrize("missing", [("text_encoder", "tokenizer"), ("tokenizer",), ("vae",)])
def test_parts_that_are_not_there(pipeline, tmp_path, capsys, missing):
    """diffusers loads no pipeline with a part missing, so none is promised; the parts load."""
    src = shutil.copytree(pipeline, tmp_path / "src")
    for name in missing:
        shutil.rmtree(src / name)
    back = there_and_back(src, tmp_path)
    word = "are" if len(missing) > 1 else "is"
    assert f"no model_index.json: {', '.join(missing)} {word} not there" in capsys.readouterr().out
    assert not (back / "model_index.json").exists()
    assert {p.name for p in back.iterdir()} == {p.name for p in src.iterdir()} - {
        "model_index.json"
    }
    index = json.loads((pipeline / "model_index.json").read_text())
    index |= {name: [None, None] for name in missing}
    (back / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected"):
        diffusers.CogVideoXPipeline.from_pretrained(back, low_cpu_mem_usage=False)
    (back / "model_index.json").unlink()
    diffusers.CogVideoXTransformer3DModel.from_pretrained(
        back, subfolder="transformer", low_cpu_mem_usage=False
    )


def test_without_a_scheduler_it_is_that_of_the_2b_model(pipeline, tmp_path, capsys):
    src = shutil.copytree(pipeline, tmp_path / "src", ignore=shutil.ignore_patterns("scheduler"))
    back = there_and_back(src, tmp_path)
    assert "scheduler: that of CogVideoX-2B" in capsys.readouterr().out
    found = diffusers.CogVideoXDDIMScheduler.from_pretrained(back / "scheduler")
    # What the 2B model's file says that differs from diffusers' defaults.
    expected = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        snr_shift_scale=3.0, clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    np.testing.assert_allclose(found.alphas_cumprod, expected.alphas_cumprod, rtol=1e-6, atol=1e-9)
    for steps in (4, 50):
        found.set_timesteps(steps)
        expected.set_timesteps(steps)
        np.testing.assert_array_equal(found.timesteps, expected.timesteps)
    assert (back / "model_index.json").is_file()


def test_bad_input(pipeline, tmp_path):
    def refuse(message, *options, error=ValueError):
        with pytest.raises(error, match=message):
            main(["export", *map(str, options), "--dst", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    refuse("no converted folder, expected transformer", "--src", tmp_path, error=FileNotFoundError)
    refuse("no manifest.json with weights.saf", "--src", pipeline, error=FileNotFoundError)
    refuse("--as model with --src: expected dif", "--src", tmp_path, "--as", "model")
    refuse("--step with --src: expected it with --workdir", "--src", tmp_path, "--step", "3")
    refuse("is no workdir", "--workdir", tmp_path, error=FileNotFoundError)
    main(["import", "--src", str(pipeline), "--dst", str(tmp_path / "converted")])
    scheduler = tmp_path / "converted" / "scheduler" / "scheduler_config.json"
    before = scheduler.read_text()
    scheduler.write_text("{}")
    refuse("scheduler_config.json: expected diffusers' JSON", "--src", tmp_path / "converted")
    scheduler.write_text('{"_class_name": null}')
    refuse("scheduler_config.json: expected diffusers' JSON", "--src", tmp_path / "converted")
    scheduler.write_text('{"_class_name": "EulerDiscreteScheduler"}')
    message = "scheduler_config.json: _class_name = 'EulerDiscreteScheduler': expected one of CogV"
    refuse(message, "--src", tmp_path / "converted")
    scheduler.write_text(before)
    weights = tmp_path / "converted" / "vae" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    refuse("vae/weights.safetensors: has .* bytes, its man", "--src", tmp_path / "converted")


def test_a_pretrained_transformer(make_run, tmp_path, capsys):
    """In float16, as CogVideoX-2B is published; it is no graft."""
    workdir, trained = make_run({"train.task": "video"})
    argv = ["export", "--workdir", str(workdir), "--dst", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="train.task = 'video' trained no graft.*--as diffusers"):
        main([*argv, "--as", "ce"])
    main(argv)
    assert f"{tmp_path}/out/transformer: step 5" in capsys.readouterr().out
    model = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        tmp_path / "out", subfolder="transformer", low_cpu_mem_usage=False
    )
    found = model.transformer_blocks[1].ff.net[2].weight.detach().numpy()
    expected = trained["blocks/ff/down/kernel"][1].T.astype(np.float16)
    np.testing.assert_array_equal(found, expected)


def test_a_canvas_model_has_no_form_of_another_package(tmp_path):
    Workdir(tmp_path / "run").create(load_config("configs/canvas_toy.py:tiny"), {})
    with pytest.raises(ValueError, match="a canvas model .* has no form of another package"):
        main(["export", "--workdir", str(tmp_path / "run"), "--dst", str(tmp_path / "out")])
