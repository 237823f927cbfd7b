"""The training loop, in a fixed order: evaluate, save, next batch, step.

A checkpoint of step k is taken before batch k + 1 is drawn, together with the batch iterator's
state, so that a resumed run sees the same data (the order is kauldron's). Keys are folded from the
step, so nothing else needs to be remembered, and a run that was killed at any moment repeats the
steps since its last checkpoint bit for bit.
"""

from __future__ import annotations

import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from roam_jax.contracts import Params, Task
from roam_jax.train import optim, sharding
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.interrupts import Interrupts
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.prefetch import DevicePrefetch
from roam_jax.train.progress import Progress
from roam_jax.train.state import (
    TrainState,
    abstract_params,
    abstract_state,
    create_params,
    create_state,
    load_pretrained,
    merge,
    partition,
)
from roam_jax.train.step import Metrics, make_train_step
from roam_jax.train.workdir import Workdir, plain, require_same_config

# Metrics without which a state is not saved.
FINITE = ("loss", "grad_norm")
Evaluate = Callable[[Params, int], Mapping[str, float]]


def run(
    task: Task,
    batches: Any,
    *,
    config: ConfigDict,
    workdir: str | pathlib.Path,
    rounds: int | Curriculum,
    rules: sharding.Rules,
    provenance: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
) -> TrainState:
    """Train until `train.steps`, from the workdir's last checkpoint if there is one.

    Args:
        task: what is trained.
        batches: endless iterator of global batches, host arrays, with `get_state()`, the position
            after the batches drawn so far (JSON-serialisable), and `set_state(state)`, as Grain's.
        config: the whole config; used are seed, train.*, optim.*, mesh.*.
        workdir: folder of the run, made if needed.
        rounds: what `task.loss` is given, static: always the same number, or a curriculum.
        rules: sharding rules, see `sharding.match_rules`.
        provenance: stored beside the config; its "fingerprints" must not change on a resume.
        evaluate: from (all parameters, step) to numbers, called every `train.eval_every` steps
            and after the last (0 = never); logged as "eval/...".

    Returns:
        The state after the last step.

    Raises:
        ValueError: config, mesh, rules, weights, batches or workdir that do not fit.
        FloatingPointError: loss or gradient is not finite; the last checkpoint is kept.
        SystemExit: 143 after SIGTERM, 130 after SIGINT, with the state saved.
    """
    # All that can be refused is refused before anything is written.
    _check_train(config.train)
    steps = config.train.steps
    curriculum = rounds if isinstance(rounds, Curriculum) else Curriculum(rounds, (), steps)
    folder, provenance = Workdir(pathlib.Path(workdir)), provenance or {}
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    batch_shapes = sharding.batch_shapes(task.batch_spec, mesh)
    tx, schedule = optim.make_optimizer(config.optim, steps=steps, no_decay=task.no_decay)
    folder.require(config, provenance)
    params = abstract_params(task, mesh, rules=rules)
    pretrained = load_pretrained(task, params)
    trainable, frozen = partition(params, task.trainable)
    like = abstract_state(trainable, tx, mesh)
    frozen = create_params(task, frozen, pretrained=pretrained, seed=config.seed)
    folder.create(config, provenance)

    with (
        Interrupts() as interrupts,
        Checkpoints(folder.checkpoints, keep=config.train.keep) as checkpoints,
    ):
        if checkpoints.steps:
            state = _resume(checkpoints, like, batches, config)
        else:
            fresh = create_params(task, trainable, pretrained=pretrained, seed=config.seed)
            state = create_state(fresh, tx, like=like)
        start = int(state.step)
        if start == steps:
            logging.info("%s is finished: all of its %d steps are done", folder.path, steps)
            return state
        train_step = make_train_step(task, tx, schedule, seed=config.seed, like=like)
        # All of them, the largest first: what does not fit in memory fails before any step.
        train_steps = {
            n: _compile(train_step, like, frozen, batch_shapes, rounds=n)
            for n in curriculum.remaining(start)
        }
        put = functools.partial(sharding.put_batch, shapes=batch_shapes)
        with (
            MetricsLog(folder.metrics_file, folder.tensorboard, last_step=start) as log,
            Progress(start, steps) as progress,
            DevicePrefetch(batches, put) as ready,
        ):
            pause = _Pause(
                config=config,
                curriculum=curriculum,
                checkpoints=checkpoints,
                log=log,
                progress=progress,
                batches=ready,
                frozen=frozen,
                evaluate=evaluate,
            )
            metrics: Metrics = {}
            for step in range(start, steps + 1):
                stop = interrupts.signal is not None  # asked once: what ends here must be saved
                if step > start:  # what a run resumes from was evaluated and saved before
                    pause(step, state, metrics, stop=stop)
                if stop:
                    logging.info("%s: stopped after step %d", interrupts.signal.name, step)
                    raise SystemExit(interrupts.exit_code)
                if step < steps:
                    # One step at a time: what the host waits for after it is data.
                    jax.block_until_ready(metrics)
                    batch = _draw(ready, step, interrupts)
                    if batch is None:
                        if step > start:
                            pause.save(step, state, metrics)
                        raise SystemExit(interrupts.exit_code)
                    train_step = train_steps[curriculum.rounds_at(step)]
                    state, metrics = train_step(state, frozen, batch)
                    progress.advance()
    return state


class _Pause:
    """What is done between two steps, each when it is due: evaluate, log, save."""

    def __init__(
        self,
        *,
        config: ConfigDict,
        curriculum: Curriculum,
        checkpoints: Checkpoints,
        log: MetricsLog,
        progress: Progress,
        batches: DevicePrefetch,
        frozen: Params,
        evaluate: Evaluate | None,
    ):
        self._config, self._curriculum = config, curriculum
        self._checkpoints, self._log = checkpoints, log
        self._progress, self._batches = progress, batches
        self._frozen, self._evaluate = frozen, evaluate

    def __call__(self, step: int, state: TrainState, metrics: Metrics, *, stop: bool) -> None:
        train = self._config.train
        evaluate = self._evaluate is not None and self._due(step, train.eval_every)
        log = evaluate or step == 1 or self._due(step, train.log_every)
        save = stop or step == train.steps or self._due(step, train.save_every)
        if not (log or save):
            return
        metrics = jax.device_get(metrics)
        values = {name: float(metrics[name]) for name in sorted(metrics, key=lambda n: n != "loss")}
        self._require_finite(step, values)
        steps = self._progress.lap_steps
        values["seconds_per_step"] = self._progress.lap(values["loss"])
        values["seconds_waiting"] = self._batches.seconds_waited() / max(1, steps)
        if evaluate:
            found = self._evaluate(merge(state.trainable, self._frozen), step)
            values |= {f"eval/{name}": float(value) for name, value in found.items()}
        if log:
            self._log.write(step, {"rounds": self._curriculum.rounds_at(step - 1), **values})
        if save:
            self.save(step, state, metrics)
        self._progress.restart_lap()

    def save(self, step: int, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Saves the state of a step, unless that was done; never one that is not finite."""
        self._require_finite(step, {name: float(metrics[name]) for name in FINITE})
        if step not in self._checkpoints.steps:
            data = self._batches.get_state()
            self._checkpoints.save(step, state, data=data, config=plain(self._config))

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self._config.train.steps)

    def _require_finite(self, step: int, values: Mapping[str, float]) -> None:
        if not all(math.isfinite(values[name]) for name in FINITE):
            steps = self._checkpoints.steps
            raise FloatingPointError(
                f"step {step}: loss = {values['loss']}, grad_norm = {values['grad_norm']}; stopped "
                f"without saving. The last good checkpoint in {self._checkpoints.directory} is "
                + (f"step {steps[-1]}" if steps else "none")
            )


def _check_train(train: ConfigDict) -> None:
    least = {"steps": 1, "keep": 1, "log_every": 0, "save_every": 0, "eval_every": 0}
    for leaf, bound in least.items():
        if train[leaf] < bound:
            raise ValueError(f"train.{leaf} = {train[leaf]}: expected {bound} or more")


def _draw(
    batches: DevicePrefetch, step: int, interrupts: Interrupts
) -> Mapping[str, jax.Array] | None:
    """The next batch; None where the signal that ends the run has ended its readers as well."""
    try:
        batch = next(batches, None)
    except Exception:
        if interrupts.signal is None:
            raise
        return None
    if batch is None and interrupts.signal is None:
        raise ValueError(f"the batches ended after {step} steps; expected an endless iterator")
    return batch


def _resume(
    checkpoints: Checkpoints, like: TrainState, batches: Any, config: ConfigDict
) -> TrainState:
    """The latest checkpoint, with `batches` put to its place."""
    state, data, saved = checkpoints.restore(like)
    where = f"checkpoint of step {int(state.step)} in {checkpoints.directory}"
    require_same_config(saved, config, where=where)
    batches.set_state(data)
    logging.info("resuming from the %s", where)
    return state


def _compile(
    step: Any,
    like: TrainState,
    frozen: Params,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    *,
    rounds: int,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compile ahead of the first batch; the result refuses other shapes, it never recompiles."""
    logging.info("compiling the training step (rounds = %d)", rounds)
    began = time.perf_counter()
    compiled = step.lower(like, frozen, batch, rounds=rounds).compile()
    logging.info("compiled in %.1f s", time.perf_counter() - began)
    return compiled
