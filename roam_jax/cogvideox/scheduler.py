"""The noise schedule of a converted folder, and diffusers' file that says it.

`scheduler/scheduler_config.json` names one of diffusers' two schedulers of CogVideoX and its
settings. What the file leaves out has the class's default there, which is not what CogVideoX-2B
uses.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from roam_jax.cogvideox.components import SCHEDULER, SCHEDULER_FILE
from roam_jax.diffusion.samplers import DDIM, DPM
from roam_jax.diffusion.schedule import NoiseSchedule
from roam_jax.files import write_atomically
from roam_jax.spelling import check_choice

CLASSES = {DDIM: "CogVideoXDDIMScheduler", DPM: "CogVideoXDPMScheduler"}
# Settings of diffusers that `NoiseSchedule` and the samplers hold to; any other is refused.
FIXED = {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
# What diffusers takes where its file is silent; the same for both classes.
DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "snr_shift_scale": 3.0,
    "beta_schedule": "scaled_linear",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
# In the published file, without effect under the settings above.
_UNUSED = {"clip_sample_range": 1.0, "sample_max_value": 1.0, "steps_offset": 0}


def read_scheduler(folder: str | os.PathLike[str]) -> tuple[NoiseSchedule, str]:
    """Noise schedule and kind of sampler, "ddim" or "dpm", of a converted folder.

    Args:
        folder: DST of `python -m convert import`. Without `scheduler/` in it: the schedule of
            CogVideoX-2B and "ddim".

    Raises:
        FileNotFoundError: `scheduler/` without its file.
        ValueError: the file does not parse, or says another scheduler or setting than is supported.
    """
    path = pathlib.Path(folder) / SCHEDULER / SCHEDULER_FILE
    if not path.parent.is_dir():
        return NoiseSchedule(), DDIM
    try:
        given = json.loads(path.read_text())
        return _parse(given)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file, the noise schedule of the model") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(given: Mapping[str, Any]) -> tuple[NoiseSchedule, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"holds {given!r}: expected an object of settings")
    check_choice("_class_name", str(given.get("_class_name", "")), CLASSES.values())
    settings = {**DEFAULTS, **given}
    for name, expected in FIXED.items():
        if settings[name] != expected:
            silent = "" if name in given else ", which diffusers takes where the file is silent"
            raise ValueError(f"{name} = {settings[name]!r}{silent}: expected {expected!r}")
    schedule = NoiseSchedule(
        steps=_number(settings, "num_train_timesteps", int),
        beta_start=_number(settings, "beta_start", float),
        beta_end=_number(settings, "beta_end", float),
        snr_shift_scale=_number(settings, "snr_shift_scale", float),
    )
    kinds = {name: kind for kind, name in CLASSES.items()}
    return schedule, kinds[given["_class_name"]]


def _number(settings: Mapping[str, Any], name: str, kind: type) -> int | float:
    """A setting as `kind`; JSON writes 1000 as 1000.0 at times, and the other way round."""
    value = settings[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or kind(value) != value:
        raise ValueError(f"{name} = {value!r}: expected {kind.__name__}")
    return kind(value)


def write_scheduler(
    folder: str | os.PathLike[str],
    *,
    kind: str = DDIM,
    schedule: NoiseSchedule = NoiseSchedule(),  # noqa: B008 - frozen
) -> None:
    """Writes FOLDER/scheduler/scheduler_config.json, as diffusers does.

    Args:
        folder: a converted folder or a diffusers directory.
        kind: "ddim" or "dpm".
        schedule: the noise schedule.

    Raises:
        ValueError: no such kind.
    """
    check_choice("sampler", kind, CLASSES)
    settings = {
        "_class_name": CLASSES[kind],
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "snr_shift_scale": schedule.snr_shift_scale,
        **FIXED,
        **_UNUSED,
    }
    path = pathlib.Path(folder) / SCHEDULER / SCHEDULER_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
