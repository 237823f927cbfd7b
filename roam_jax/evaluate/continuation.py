"""Evaluation of sampled continuations: the video that a model makes of what was observed.

Every window is continued from the same noise by every number of rounds, so differences between
rounds, and from copying the last observed frame, are paired. Sampled frames come out of the VAE:
what it makes of the true frames is the best that sampling can reach, and what it makes of the copy
is a copy on the same terms.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from roam_jax.contracts import FRAMES_PER_LATENT, Batch, Params, TimeSpec
from roam_jax.data.windows import WindowSource
from roam_jax.diffusion.samplers import SAMPLERS, Sampler
from roam_jax.evaluate.pictures import PICTURED, window_titles
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.predictor import GraftPredictor, draw_noise
from roam_jax.evaluate.report_video import REFERENCE_TITLES
from roam_jax.evaluate.rounds import choose_rounds, round_title
from roam_jax.evaluate.splits import file_name
from roam_jax.evaluate.video_quality import ABSENT, METRICS, frame_quality, quality_figures
from roam_jax.evaluate.windows import PURE_NOISE, SEED, map_windows, spread_windows
from roam_jax.model.loop_options import exit_threshold
from roam_jax.spelling import check_choice
from roam_jax.tasks.build import Experiment
from roam_jax.tasks.graft_sampling import sample_jointly
from roam_jax.video_files import write_video
from roam_jax.viz.frames import draw_frame_strips
from roam_jax.viz.horizons import draw_horizons
from roam_jax.viz.side_by_side import side_by_side

# Stream of the noise that a sampler adds on its way, apart from those of its start.
STEP_STREAM = 1 << 22
# What sampled frames are compared with: what the VAE makes of the true ones; the last observed one
# held, as it is and as the VAE makes it.
REFERENCES = ("vae", "copy", "copy_vae")


class ContinuationSampler:
    """Samples the predicted frames of windows; compiled once for each number of rounds.

    Args:
        predictor: of the model; encodes and decodes.
        sampler: kind and steps.
        extrapolate: "last" allows more rounds than were trained.
        threshold: as for `GraftPredictor`.
    """

    def __init__(
        self,
        predictor: GraftPredictor,
        sampler: Sampler,
        *,
        extrapolate: str | None = None,
        threshold: float | None = None,
    ):
        self._predictor, self._model = predictor, predictor.model
        self._sampler = sampler
        self._options = {"extrapolate": extrapolate, "threshold": threshold}
        self._sample = jax.jit(self._sample_windows, static_argnames="rounds")

    def sample(
        self, params: Params, windows: Batch, indices: Int[np.ndarray, " B"], *, rounds: int
    ) -> UInt8[Array, "B T H W 3"]:
        """Frames: what the VAE makes of the observed latents, then the sampled ones.

        Args:
            params: the whole tree.
            windows: from `GraftPredictor.encode`.
            indices: of the windows in their split; they decide all noise.
            rounds: static number of rounds.
        """
        pure = self._model.schedule.steps - 1
        _, noise, others = draw_noise(
            self._model, indices, timesteps=(pure, pure + 1), stream=PURE_NOISE
        )
        drawn = put_rows((indices, {"noise": noise, **others}), params)
        latents = self._sample(params, windows, *drawn, rounds=rounds)
        return self._predictor.decode(params, latents)

    def _sample_windows(self, params, windows, indices, noise, *, rounds: int):
        """Each window by itself, so that its noise is its own whatever it shares a batch with."""

        def one_window(window, index, noise) -> Float[Array, "F C h w"]:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), index), STEP_STREAM)
            batch, noise = jax.tree.map(lambda x: x[None], (window, noise))
            found = sample_jointly(
                self._model,
                params,
                batch,
                sampler=self._sampler,
                step_noise_key=key,
                rounds=rounds,
                **self._options,
                **noise,
            )
            return found["latents"][0]

        return jax.vmap(one_window)(windows, indices, noise)


class ContinuationEvaluation:
    """Figures and pictures of the continuations of a `GraftModel`.

    Args:
        experiment: data and model; `eval.video_*` of its config say how much is sampled.
        extrapolate: "last" allows rounds above the trained number; they reuse its last rows.

    Raises:
        ValueError: `eval.video_steps`, `eval.video_sampler` or `eval.exit_threshold` is out of
            range.
    """

    def __init__(self, experiment: Experiment, *, extrapolate: str | None = None):
        self._experiment, self._settings = experiment, experiment.config.eval
        self._extrapolate, model = extrapolate, experiment.model
        kind, steps = self._settings.video_sampler, self._settings.video_steps
        check_choice("eval.video_sampler", kind, SAMPLERS)
        if not 1 <= steps <= model.schedule.steps:
            raise ValueError(f"eval.video_steps = {steps}: expected 1..{model.schedule.steps}")
        self._predictor = GraftPredictor(model)
        self._sampler = ContinuationSampler(
            self._predictor,
            Sampler(kind, steps, model.schedule),
            extrapolate=extrapolate,
            threshold=exit_threshold(
                self._settings.exit_threshold, halting=experiment.config.loop.halting
            ),
        )
        # Split -> window -> its frames by version, episode and start.
        self._shown: dict[str, dict[int, tuple]] = {}

    def rounds(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """As `choose_rounds`.

        Raises:
            ValueError: as there.
        """
        trained = self._experiment.config.loop.rounds
        return choose_rounds(wanted, trained=trained, extrapolate=self._extrapolate)

    def report(self, params: Params, *, rounds: tuple[int, ...]) -> dict[str, Any]:
        """{split: {"continuation": figures}}; docs/evaluate.md describes them."""
        return {
            split: {"continuation": self._figures(params, split, source, rounds)}
            for split, source in self._experiment.splits.items()
        }

    def draw(
        self, params: Params, splits: dict[str, Any], prefix: pathlib.Path, *, rounds: tuple
    ) -> None:
        """PREFIX_continuation.png, and PREFIX_SPLIT_continuation.png and .mp4 of each split.

        Shown are windows of the last `report`, which are not sampled again.

        Args:
            params: not read.
            splits: what `report` gave.
            prefix: path without what follows the first underscore.
            rounds: not read: all that were measured are shown.
        """
        del params, rounds
        panels = {split: _curves(found["continuation"]) for split, found in splits.items()}
        frames = next(iter(splits.values()))["continuation"]["frames"]
        draw_horizons(prefix.with_name(f"{prefix.name}_continuation.png"), panels, frames=frames)
        for split, found in splits.items():
            self._draw_windows(split, prefix, found["continuation"])

    def _figures(
        self, params: Params, split: str, source: WindowSource, rounds: tuple[int, ...]
    ) -> dict[str, Any]:
        found = self._measure(params, split, source, rounds)
        time, trained = self._experiment.time, self._experiment.config.loop.rounds
        latents, episodes = predicted_latents(time), found["episode"]

        def figures(quality: dict[str, np.ndarray]) -> dict[str, Any]:
            resamples = self._settings.resamples
            return quality_figures(quality, latents, episodes=episodes, resamples=resamples)

        return {
            "windows": len(episodes),
            "episodes": len(np.unique(episodes)),
            "sampler": self._settings.video_sampler,
            "steps": self._settings.video_steps,
            "frames": list(range(time.observed_frames, time.frames)),
            "latents": latents,
            "absent": ABSENT,
            **{name: figures(found[name]) for name in REFERENCES},
            "rounds": {
                str(number): {
                    "extrapolated": number > trained,
                    **figures(quality),
                    "minus_copy": figures({n: quality[n] - found["copy"][n] for n in METRICS}),
                }
                for number, quality in found["rounds"].items()
            },
        }

    def _measure(
        self, params: Params, split: str, source: WindowSource, rounds: tuple[int, ...]
    ) -> dict:
        """Episodes, and the quality of each version of the windows; keeps a few for pictures."""
        seen = self._experiment.time.observed_frames
        indices = spread_windows(len(source), self._settings.video_windows)
        pictured = indices[spread_windows(len(indices), min(PICTURED, len(indices)))].tolist()
        shown = self._shown[split] = {}

        def measure(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
            windows, true = self._predictor.encode(params, batch), batch["frames"]
            copied = true.copy()
            copied[:, seen:] = true[:, seen - 1 : seen]
            held = self._predictor.encode(params, {**batch, "frames": copied})
            made = {
                "vae": self._predictor.decode(params, windows["target_latents"]),
                "copy_vae": self._predictor.decode(params, held["target_latents"]),
                **{r: self._sampler.sample(params, windows, indices, rounds=r) for r in rounds},
                "copy": copied,
            }
            made = {name: np.asarray(frames) for name, frames in made.items()}
            for row, index in enumerate(indices.tolist()):
                if index in pictured:
                    frames = {"true": true[row], **{n: x[row] for n, x in made.items()}}
                    shown[index] = frames, batch["episode"][row], batch["start"][row]
            quality = {n: frame_quality(x[:, seen:], true[:, seen:]) for n, x in made.items()}
            references = {name: quality.pop(name) for name in REFERENCES}
            return {"episode": batch["episode"], **references, "rounds": quality}

        rows = rows_per_batch(min(self._settings.batch_size, len(indices)), params)
        return map_windows(source, indices, measure, batch_size=rows)

    def _draw_windows(self, split: str, prefix: pathlib.Path, figures: dict[str, Any]) -> None:
        source, observed = self._experiment.splits[split], self._experiment.time.observed_frames
        windows, episodes, starts = zip(*self._shown[split].values(), strict=True)
        rounds = {int(n): round_title(n, one, mark=" *") for n, one in figures["rounds"].items()}
        names = {"true": "true", "vae": "VAE", **rounds, "copy": "last frame"}
        strips = {title: np.stack([one[name] for one in windows]) for name, title in names.items()}
        path = prefix.with_name(f"{prefix.name}_{file_name(split)}_continuation.png")
        titles = window_titles(split, source, np.array(episodes), np.array(starts))
        draw_frame_strips(path, strips, titles=titles, observed=observed)
        rate = source.reader.declaration.rate / source.stride
        write_video(path.with_suffix(".mp4"), side_by_side(strips, observed=observed), rate=rate)


def predicted_latents(time: TimeSpec) -> list[int]:
    """The latent frame that each predicted environment frame belongs to."""
    frames = np.arange(time.observed_frames, time.frames)
    return (1 + (frames - 1) // FRAMES_PER_LATENT).tolist()


def _curves(figures: dict[str, Any]) -> dict[str, dict[str, list]]:
    """Metric -> series -> one estimate a frame."""
    series = {round_title(n, one): one for n, one in figures["rounds"].items()}
    series |= {title: figures[name] for name, title in REFERENCE_TITLES.items()}
    return {name: {title: one[name]["frames"] for title, one in series.items()} for name in METRICS}
