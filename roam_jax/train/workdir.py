"""The folder of one run: its config and where it comes from, metrics, checkpoints, evaluations.

A folder belongs to one config for ever. The same command on it resumes; another config is refused
with the keys that differ, because a run that changed half-way can neither be read nor repeated.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from roam_jax.files import write_atomically

# Leaves that change what is written down, where things lie or which devices compute them, not what
# is computed but for its rounding: what the files hold is compared by fingerprint.
FREE_KEYS = (
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.keep",
    "train.keep_best",
    "train.best_metric",
    "train.best_mode",
    "train.keep_hours",
    "train.accumulate",
    "train.refusals",
    "train.rollbacks",
    "train.remat",
    "train.wandb",
    "train.profile",
    "train.compile_cache",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
    "eval.ema",
    "backbone.path",
    "data.root",
    "data.mixture",
    "data.declaration",
    "data.text",
    "data.latents",
    "data.workers",
)
# Leaves that runs of earlier versions lack, with the values under which they were made.
LATER_LEAVES = MappingProxyType(
    {
        "data.latents": "",
        "data.latents_stride": 0,
        "data.posterior": "mean",
        "data.scene": "multimodal",
        "data.questions": "both",
        "data.objects": 5,
        "data.observed_frames": 2,
        "data.environment": "reach",
        "data.bodies": (),
        "data.demonstrations": 200,
        "data.chunk": 8,
        "data.pixels": 0,
        "canvas.predict": (),
        "loop.over": "block",
        "loop.reinject": "none",
        "loop.halting": "none",
        "loop.backprop_rounds": 0,
        "loop.self_distillation": False,
        "loss.noised_fraction": 1.0,
        "loss.weights": (),
        "loss.balance": "fixed",
        "loss.gradnorm_alpha": 0.0,
        "loss.decoder_only": (),
        "loss.ponder": 0.01,
        "optim.ema_decay": 0.0,
        "train.accumulate": 1,
        "train.remat": "layers",
        "train.dtype": "auto",
        "train.keep_best": 0,
        "train.best_metric": "eval/action_mse",
        "train.best_mode": "min",
        "train.keep_hours": 0.0,
        "train.spike_factor": 0.0,
        "train.refusals": 3,
        "train.rollbacks": 2,
        "train.wandb": "",
        "train.profile": "",
        "train.compile_cache": "auto",
        "mesh.sequence": 1,
        "mesh.tensor": 1,
        "eval.ema": True,
        "eval.video_windows": 16,
        "eval.video_steps": 50,
        "eval.video_sampler": "ddim",
        "eval.exit_threshold": 0.0,
        "eval.episodes": 200,
        "eval.replan": 4,
        "eval.ensembling": False,
        "eval.ensemble_decay": 0.1,
    }
)
# The same of whole sections, which their tasks do not read.
LATER_SECTIONS = MappingProxyType(
    {"model": {"width": 64, "depth": 3, "heads": 4, "decoder": "mlp", "region_decoders": ()}}
)
# Holds the workdirs of runs that were trained with --seeds, by seed.
SEEDS_FOLDER = "seeds"
# The part of the provenance that must not change: what the data and the frozen weights are.
FINGERPRINTS = "fingerprints"
# The part of it on windows that were encoded before training, by member.
LATENTS = "latents"


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON would give it back (tuples are lists)."""
    config = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.loads(json.dumps(config))


def with_later_leaves(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, plain, with the leaves and sections that came after it.

    Sections that it lacks without being older than they are stay away.
    """
    found = plain(LATER_SECTIONS) | plain(saved)
    for key, value in plain(LATER_LEAVES).items():
        section, leaf = key.split(".")
        if section in found:
            found[section].setdefault(leaf, value)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"optim.lr": "0.001 -> 0.002"} for every leaf that is not the same in both."""
    found = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[prefix + key] = f"{before} -> {after}"
    return found


def require_same_config(saved: Mapping[str, Any], config: ConfigDict, *, where: str) -> None:
    """Refuse to go on with another config than the one saved.

    Args:
        saved: the plain dict that was saved.
        config: of this run.
        where: what holds `saved`, for the message.

    Raises:
        ValueError: naming each leaf that differs, except those of `FREE_KEYS`.
    """
    changed = differences(with_later_leaves(saved), with_later_leaves(plain(config)))
    listed = [f"{key}: {values}" for key, values in changed.items() if key not in FREE_KEYS]
    if listed:
        raise ValueError(
            f"{where} was made with another config: {'; '.join(listed)}. "
            "Use another --workdir, or the values that it was made with"
        )


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of a run's folder.

    Args:
        path: the folder; `create` makes it.
    """

    path: pathlib.Path

    @property
    def config_file(self) -> pathlib.Path:
        """{"config": {...}, "provenance": {...}}."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> pathlib.Path:
        """One JSON object a line, see `metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """One folder a saved step, see `checkpoint`."""
        return self.path / "checkpoints"

    @property
    def incidents_file(self) -> pathlib.Path:
        """One JSON object a refused update, see `guard`."""
        return self.path / "incidents.jsonl"

    @property
    def journal_file(self) -> pathlib.Path:
        """Starts and ends, see `journal`."""
        return self.path / "journal.jsonl"

    @property
    def profile(self) -> pathlib.Path:
        """Traces of JAX's profiler."""
        return self.path / "profile"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Event files with the numbers of `metrics_file`."""
        return self.path / "tensorboard"

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config and the provenance that the run was started with, as plain dicts.

        Raises:
            FileNotFoundError: there is no config.json.
            ValueError: it is not what `create` writes.
        """
        if not self.config_file.exists():
            of_seeds = (self.path / SEEDS_FOLDER).is_dir()
            raise FileNotFoundError(
                f"{self.path} is no workdir: it has no {self.config_file.name}"
                + (f"; the runs of its seeds are {SEEDS_FOLDER}/SEED" if of_seeds else "")
            )
        try:
            saved = json.loads(self.config_file.read_text(encoding="utf-8"))
            return saved["config"], saved["provenance"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{self.config_file}: expected {{"config": ..., "provenance": ...}}, got {error!r}'
            ) from error

    def require(self, config: ConfigDict, provenance: Mapping[str, Any]) -> None:
        """Refuse a folder of another run; a folder that does not exist is right.

        Raises:
            ValueError: it was made with another config, other fingerprints or other encoded
                windows, or it holds several seeds, or a run without its config.json.
        """
        if self.config_file.exists():
            saved, before = self.read()
            require_same_config(saved, config, where=f"workdir {self.path}")
            old, new = (plain(p.get(FINGERPRINTS, {})) for p in (before, provenance))
            if changed := differences(old, new):
                listed = "; ".join(f"{key}: {values}" for key, values in changed.items())
                raise ValueError(
                    f"workdir {self.path} was made with other data or weights: {listed}"
                )
            if _encoded(before) != _encoded(provenance):
                was, now = (dict(c.get("data", {})).get(LATENTS) for c in (saved, config))
                raise ValueError(
                    f"workdir {self.path}: data.latents: {was or 'none'} -> {now or 'none'}"
                    f"{', encoded otherwise' if was == now else ''}; expected what the run began "
                    "with"
                )
        elif (self.path / SEEDS_FOLDER).is_dir():
            raise ValueError(
                f"{self.path} holds runs of several seeds: expected --seeds, or the folder of one "
                f"of them, {self.path / SEEDS_FOLDER}/SEED"
            )
        elif self.metrics_file.exists() or self.checkpoints.exists():
            raise ValueError(
                f"{self.path} holds a run but no {self.config_file.name}: "
                "expected a new folder or a whole workdir"
            )

    def create(self, config: ConfigDict, provenance: Mapping[str, Any]) -> None:
        """Make the folder and its config.json, unless the run is being resumed."""
        if not self.config_file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            saved = {"config": plain(config), "provenance": plain(provenance)}
            write_atomically(self.config_file, json.dumps(saved, indent=2) + "\n")


def _encoded(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint of each member's encoded windows, wherever they lie; {} of a run on frames."""
    return {name: found["fingerprint"] for name, found in provenance.get(LATENTS, {}).items()}
