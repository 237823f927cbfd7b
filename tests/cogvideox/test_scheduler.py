"""Scheduler files written here and read by diffusers, and the other way round."""

import json

import diffusers
import numpy as np
import pytest

from roam_jax.cogvideox import scheduler
from roam_jax.cogvideox.scheduler import CLASSES, read_scheduler, write_scheduler
from roam_jax.diffusion.samplers import Sampler
from roam_jax.diffusion.schedule import NoiseSchedule
from tests.diffusion.test_schedule import SETTINGS

OTHER = NoiseSchedule(steps=500, beta_start=0.001, beta_end=0.02, snr_shift_scale=1.0)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("schedule", [NoiseSchedule(), OTHER])
def test_diffusers_reads_what_is_written(tmp_path, kind, schedule):
    write_scheduler(tmp_path, kind=kind, schedule=schedule)
    theirs = getattr(diffusers, CLASSES[kind]).from_pretrained(tmp_path / "scheduler")
    np.testing.assert_allclose(theirs.alphas_cumprod, schedule.alphas_cumprod, atol=1e-12)
    theirs.set_timesteps(50)
    np.testing.assert_array_equal(theirs.timesteps, Sampler(kind, 50, schedule).timesteps)
    assert theirs.config.prediction_type == "v_prediction" and not theirs.config.clip_sample
    assert read_scheduler(tmp_path) == (schedule, kind)


@pytest.mark.parametrize("kind, name", CLASSES.items())
def test_what_diffusers_writes_is_read(tmp_path, kind, name):
    theirs = getattr(diffusers, name)(**SETTINGS | {"snr_shift_scale": 1.0})
    theirs.save_pretrained(tmp_path / "scheduler")
    assert read_scheduler(tmp_path) == (NoiseSchedule(snr_shift_scale=1.0), kind)


def test_a_folder_without_a_scheduler_is_the_2b_models(tmp_path):
    assert read_scheduler(tmp_path) == (NoiseSchedule(), "ddim")


@pytest.mark.parametrize("name", CLASSES.values())
def test_the_defaults_are_those_of_diffusers(name):
    theirs = getattr(diffusers, name)().config
    assert {key: theirs[key] for key in scheduler.DEFAULTS} == scheduler.DEFAULTS


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prediction_type": "epsilon"}, "prediction_type = 'epsilon': expected 'v_prediction'"),
        (
            {"timestep_spacing": ...},
            "timestep_spacing = 'leading', which diffusers takes where the file is silent: "
            "expected 'trailing'",
        ),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps = 1000.5: expected int"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps = '1000': expected int"),
        ({"num_train_timesteps": None}, "num_train_timesteps = None: expected int"),
        ({"beta_start": float("nan")}, "beta_start = nan: expected float"),
        ({"snr_shift_scale": True}, "snr_shift_scale = True: expected float"),
        ({"_class_name": None}, "_class_name = 'None': expected one of CogVideoXDDIMScheduler"),
        ({"clip_sample": True}, "clip_sample = True: expected False"),
        ({"beta_end": 2.0}, "beta_end = 2.0: expected 0 < beta_start <= beta_end < 1"),
        (
            {"_class_name": "DDIMScheduler"},
            "_class_name = 'DDIMScheduler': expected one of CogVideoXDDIMScheduler, "
            "CogVideoXDPMScheduler",
        ),
    ],
)
def test_another_scheduler_is_refused_by_what_it_is(tmp_path, changes, message):
    write_scheduler(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))
    with pytest.raises(ValueError, match="scheduler_config.json: ") as error:
        read_scheduler(tmp_path)
    assert message in str(error.value)


def test_whole_numbers_may_be_written_as_floats_and_the_other_way_round(tmp_path):
    write_scheduler(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text()) | {"num_train_timesteps": 500.0, "snr_shift_scale": 2}
    path.write_text(json.dumps(settings))
    found, _ = read_scheduler(tmp_path)
    assert found == NoiseSchedule(steps=500, snr_shift_scale=2.0)
    assert type(found.steps) is int and found.alphas_cumprod.shape == (500,)


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    (tmp_path / "scheduler").mkdir()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json: no such file"):
        read_scheduler(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(text)
        with pytest.raises(ValueError, match="scheduler_config.json: "):
            read_scheduler(tmp_path)
    with pytest.raises(ValueError, match="sampler = 'euler': expected one of ddim, dpm"):
        write_scheduler(tmp_path, kind="euler")
