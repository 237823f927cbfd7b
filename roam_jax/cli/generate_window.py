"""`generate --workdir`: a window of a run's data, continued: video and actions together.

The model sees the observed frames, past actions and the instruction, as in an evaluation; its
noise is that of the window there, so `eval.py --metrics video` shows the same continuation.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from roam_jax.cli.arguments import override
from roam_jax.contracts import Batch, Params
from roam_jax.diffusion.samplers import DDIM, Sampler
from roam_jax.evaluate.continuation import STEP_STREAM
from roam_jax.evaluate.pictures import window_titles
from roam_jax.evaluate.placement import put_rows, rows_per_batch
from roam_jax.evaluate.predictor import GraftPredictor, draw_noise
from roam_jax.evaluate.saved import open_saved
from roam_jax.evaluate.splits import own_dimensions
from roam_jax.evaluate.windows import PURE_NOISE, SEED
from roam_jax.files import write_atomically
from roam_jax.model.looped import check_rounds
from roam_jax.spelling import check_choice
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.graft_sampling import sample_jointly
from roam_jax.video_files import write_video
from roam_jax.viz.side_by_side import side_by_side

if TYPE_CHECKING:
    from roam_jax.data.windows import WindowSource

TASK = "graft"


def generate_window(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Writes OUT, recorded and sampled side by side, and the chunks of actions beside it.

    Raises:
        FileNotFoundError, ValueError: as `open_saved`; another kind of run, no such split or
            window, or rounds above the trained number.
    """
    run = open_saved(
        options.workdir,
        step=options.step,
        overrides=functools.partial(override, arguments=overrides),
    )
    experiment = run.experiment
    config, model = experiment.config, experiment.model
    if config.train.task != TASK:
        raise ValueError(
            f"{options.workdir}: a run of train.task = {config.train.task!r}, expected {TASK!r}"
        )
    check_choice("--split", options.split, experiment.splits)
    source = experiment.splits[options.split]
    if not 0 <= options.window < len(source):
        raise ValueError(
            f"--window {options.window}: split {options.split} has the windows 0..{len(source) - 1}"
        )
    rounds = config.loop.rounds if options.rounds is None else options.rounds
    check_rounds(rounds, trained=config.loop.rounds, extrapolate=options.extrapolate)
    kind = DDIM if options.sampler == "auto" else options.sampler
    sampler = Sampler(kind, options.steps, model.schedule)
    seed = options.window if options.seed is None else options.seed

    window = source[options.window]
    copies = rows_per_batch(1, run.params)  # one for each device, of which the first is kept
    batch = Batch(**{name: np.stack([value] * copies) for name, value in window.items()})
    (title,) = window_titles(options.split, source, batch["episode"][:1], batch["start"][:1])
    print(f"window:   {options.window}, {title}")
    print(f"sampling: {kind}, {sampler.steps} steps, {rounds} rounds, step {run.step}, seed {seed}")
    found, seconds = _sample(
        model, run.params, batch, sampler=sampler, rounds=rounds, seed=seed,
        extrapolate=options.extrapolate,
    )  # fmt: skip
    predictor = GraftPredictor(model)
    sampled = np.asarray(predictor.decode(run.params, found["latents"]))[:1]

    observed = model.time.observed_frames
    strips = {"recorded": batch["frames"][:1], f"sampled\nrounds = {rounds}": sampled}
    rate = source.reader.declaration.rate / source.stride
    rate = rate if options.rate is None else options.rate
    video = side_by_side(strips, observed=observed)
    write_video(options.out, video, rate=rate)
    print(f"video:    {options.out}: recorded and sampled, {observed} of {len(video)} frames given")
    origin = {
        "split": options.split, "window": options.window, "episode": int(window["episode"]),
        "start": int(window["start"]), "run_step": run.step, "rounds": rounds, "sampler": kind,
        "steps": sampler.steps, "seed": seed,
    }  # fmt: skip
    report = {**origin, **_actions(source, batch, found)}
    path = options.out.with_name(f"{options.out.stem}.actions.json")
    write_atomically(path, json.dumps(report, indent=1) + "\n")
    print(f"actions:  {path}: {len(report['sampled'])} of {', '.join(report['names'])}")
    print(f"time:     {seconds / sampler.steps:.3g} s a step after compilation")


def _sample(
    model: GraftModel,
    params: Params,
    batch: Batch,
    *,
    sampler: Sampler,
    rounds: int,
    seed: int,
    extrapolate: str | None,
) -> tuple[dict[str, Any], float]:
    """Latents and normalised actions of rows that are alike, and the seconds that it took."""
    seeds = np.full(len(batch["frames"]), seed, np.int32)
    pure = model.schedule.steps - 1
    _, noise, others = draw_noise(model, seeds, timesteps=(pure, pure + 1), stream=PURE_NOISE)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), seed), STEP_STREAM)
    # Of the future nothing is handed over but what shapes need.
    names = [name for name in batch if not name.startswith(("future", "action_chunk", "target"))]
    drawn = put_rows(({name: batch[name] for name in names}, noise, others), params)

    @jax.jit
    def sample(params: Params, drawn: Any, key: jax.Array) -> dict[str, Any]:
        """Each row by itself, as in an evaluation: its noise is its own."""

        def one_window(window: Batch, noise: Any, others: Any) -> dict[str, Any]:
            found = sample_jointly(
                model, params, window, sampler=sampler, noise=noise, step_noise_key=key,
                rounds=rounds, extrapolate=extrapolate, **others,
            )  # fmt: skip
            return {name: found[name][0] for name in ("latents", "actions")}

        return jax.vmap(one_window)(*jax.tree.map(lambda rows: rows[:, None], drawn))

    logging.info("compiling %d steps of %d rounds", sampler.steps, rounds)
    began = time.monotonic()
    compiled = sample.lower(params, drawn, key).compile()
    logging.info("compiled in %.1f s", time.monotonic() - began)
    began = time.monotonic()
    found = jax.block_until_ready(compiled(params, drawn, key))
    return found, time.monotonic() - began


def _actions(source: WindowSource, batch: Batch, found: dict[str, Any]) -> dict[str, Any]:
    """Sampled and recorded actions in their units, what was sampled of them."""
    statistics = source.statistics.actions
    sampled, recorded = (
        statistics.unnormalise(own_dimensions(np.asarray(rows[:1]), source, "actions"))[0]
        for rows in (found["actions"], batch["action_chunk"])
    )
    return {
        "instruction": source.reader.headers[int(batch["episode"][0])].instruction,
        "names": list(statistics.spec.names),
        "units": list(statistics.spec.units),
        "rate": source.reader.declaration.rate / source.stride,
        "sampled": sampled.tolist(),
        "recorded": recorded[: len(sampled)].tolist(),
    }
