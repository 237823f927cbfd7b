"""Rounds by step: against canvas-engineering's scheduler, and in training runs of the toy."""

from __future__ import annotations

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from configs import defaults
from roam_jax.cli.arguments import override
from roam_jax.train import loop
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.metrics import read_metrics, reproducible
from tests.train import toy

CURRICULUM = Curriculum(3, (3, 8), steps=12)
ROUNDS = [1] * 3 + [2] * 5 + [3] * 4


def test_one_more_round_from_each_step_on():
    assert [CURRICULUM.rounds_at(step) for step in range(12)] == ROUNDS
    assert [Curriculum(3, (7,), steps=10).rounds_at(step) for step in (0, 6, 7, 9)] == [2, 2, 3, 3]
    assert {Curriculum(4, (), steps=10).rounds_at(step) for step in range(10)} == {4}


@pytest.mark.parametrize(("rounds", "steps"), itertools.product((1, 2, 3, 4), (7, 100, 5000, 9999)))
def test_equal_phases_are_canvas_engineerings(rounds, steps):
    scheduler = pytest.importorskip("canvas_engineering").CurriculumScheduler(rounds, steps)
    starts = tuple(-(-k * steps // rounds) for k in range(1, rounds))
    ours = Curriculum(rounds, starts, steps=steps)
    assert all(ours.rounds_at(step) == scheduler.get_loops(step) for step in range(steps))


@pytest.mark.parametrize(
    ("rounds", "starts", "message"),
    [
        (3, (5, 5), r"\(5, 5\): expected rising steps above 0 and below train.steps = 12"),
        (3, (5, 2), "expected rising steps"),
        (3, (0,), "expected rising steps"),
        (3, (3, 12), "below train.steps = 12"),
        (2, (3, 8), r"loop.curriculum = \(3, 8\): expected fewer steps than loop.rounds = 2"),
        (3, (2.5,), "expected whole numbers"),
        (3, ("a",), "expected whole numbers"),
    ],
)
def test_curricula_that_cannot_be_run(rounds, starts, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(rounds, starts, steps=12)


@pytest.mark.parametrize(
    ("text", "starts"),
    [("(1000,2000)", (1000, 2000)), ("(1000,)", (1000,)), ("1000", (1000,)), ("()", ())],
)
def test_command_lines_give_a_curriculum(text, starts):
    config = defaults.get_config()
    override(config, [f"--config.loop.curriculum={text}"])
    assert config.loop.curriculum == starts
    again = defaults.get_config()
    again.loop.curriculum = (5, 6)  # what a config file may hold
    override(again, [f"--config.loop.curriculum={text}"])
    assert again.loop.curriculum == starts


def test_a_command_that_cannot_be_run_ends_before_anything_is_read(tmp_path):
    line = ["--config", "configs/bridge_3loop.py:tiny", "--workdir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"loop.curriculum = \(9, 5\): expected rising steps"):
        train.main([*line, "--config.data.root=nowhere", "--config.loop.curriculum=(9,5)"])
    assert not (tmp_path / "run").exists()


def run(workdir, *, batches=None, traced=None, **train):
    return loop.run(
        counting_task([] if traced is None else traced),
        batches or toy.ToyBatches(),
        config=toy.make_config(mesh=(2, 4), **train),
        workdir=workdir,
        rounds=CURRICULUM,
        rules=toy.RULES,
    )


def counting_task(traced):
    """The toy task; notes the rounds of each trace of its loss, and reports those of each step."""

    def loss(params, batch, rng, rounds):
        traced.append(rounds)
        value, metrics = toy.loss(params, batch, rng, rounds)
        return value, {**metrics, "loss/rounds": jnp.float32(rounds)}

    return toy.make_task(loss=loss)


def rows(workdir):
    found = read_metrics(workdir / "metrics.jsonl")
    return list(map(reproducible, found))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, state, traces, compilations before each batch) of an undisturbed run.

    It saves at its end only, because saving compiles.
    """
    traced, compiled, counts = [], [], {}

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    before = {k: lambda k=k: counts.__setitem__(k, len(compiled)) for k in range(12)}
    workdir = tmp_path_factory.mktemp("run")
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state = run(workdir, batches=toy.ToyBatches(before), traced=traced, save_every=0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return workdir, state, traced, counts


def test_each_number_of_rounds_compiles_once_and_before_the_first_step(finished):
    _, _, traced, counts = finished
    assert traced == [3, 2, 1]
    assert counts[0] >= 3  # the listener works
    assert counts[1] == counts[11]


def test_every_step_runs_the_rounds_that_its_metrics_say(finished):
    found = rows(finished[0])
    assert [row["rounds"] for row in found] == ROUNDS
    assert [row["loss/rounds"] for row in found] == ROUNDS


def test_resuming_inside_a_phase_repeats_bit_for_bit(finished, tmp_path, caplog):
    """Stopped in the second phase, two steps after a checkpoint, and once more in the third."""
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, batches=toy.ToyBatches({6: lambda: 1 / 0}))
    traced = []
    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.INFO):
        run(tmp_path, batches=toy.ToyBatches({10: lambda: 1 / 0}), traced=traced)
    assert traced == [3, 2]  # the first phase is over
    assert "compiling the training step (rounds = 2)" in caplog.text
    state = run(tmp_path, traced=traced)
    assert traced == [3, 2, 3]
    assert rows(tmp_path) == rows(finished[0])
    jax.tree.map(np.testing.assert_array_equal, state, finished[1])
