"""Pictures of a grafted model's predictions: action chunks and frames."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Int

from roam_jax.contracts import Batch, Params
from roam_jax.data.windows import WindowSource
from roam_jax.evaluate.placement import rows_per_batch
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.splits import file_name, own_dimensions
from roam_jax.evaluate.windows import map_windows, spread_windows
from roam_jax.tasks.build import Experiment
from roam_jax.viz.actions import draw_action_chunks
from roam_jax.viz.frames import draw_frame_strips

# Windows of a picture.
PICTURED = 3


def window_titles(
    split: str,
    source: WindowSource,
    episodes: Int[np.ndarray, " n"],
    starts: Int[np.ndarray, " n"],
) -> list[str]:
    """Split, episode, step and instruction of windows."""
    titles = []
    for episode, start in zip(episodes.tolist(), starts.tolist(), strict=True):
        instruction = source.reader.headers[episode].instruction or "(no instruction)"
        titles.append(f"{split} episode {episode}, from step {start}: {instruction}")
    return titles


def draw_graft_pictures(
    predictor: GraftPredictor,
    experiment: Experiment,
    params: Params,
    *,
    prefix: pathlib.Path,
    rounds: int,
) -> None:
    """PREFIX_SPLIT_actions.png and PREFIX_SPLIT_frames.png: predictions at pure noise.

    Args:
        predictor: the compiled model.
        experiment: windows and statistics.
        params: the whole tree.
        prefix: path of the pictures without what follows the first underscore.
        rounds: number of rounds.
    """

    def predict(indices: Int[np.ndarray, " B"], batch: Batch) -> dict:
        windows = predictor.encode(params, batch)
        found = predictor.deploy(params, windows, indices, rounds=rounds)
        return {
            **batch,
            "predicted": found["actions"],
            "reconstructed": predictor.decode(params, windows["target_latents"]),
            "one_step": predictor.decode(params, found["latents"]),
        }

    for split, source in experiment.splits.items():
        indices = spread_windows(len(source), PICTURED)
        rows = rows_per_batch(experiment.config.eval.batch_size, params)
        found = map_windows(source, indices, predict, batch_size=rows)
        titles = window_titles(split, source, found["episode"], found["start"])
        statistics = source.statistics.actions
        past, recorded, predicted = (
            statistics.unnormalise(own_dimensions(found[name], source, "actions"))
            for name in ("past_actions", "action_chunk", "predicted")
        )
        draw_action_chunks(
            prefix.with_name(f"{prefix.name}_{file_name(split)}_actions.png"),
            past=past,
            recorded=recorded,
            predicted=predicted,
            names=statistics.spec.names,
            units=statistics.spec.units,
            titles=titles,
        )
        draw_frame_strips(
            prefix.with_name(f"{prefix.name}_{file_name(split)}_frames.png"),
            {
                "true": found["frames"],
                "VAE": found["reconstructed"],
                "one step\nfrom noise": found["one_step"],
            },
            titles=titles,
            observed=experiment.time.observed_frames,
        )
