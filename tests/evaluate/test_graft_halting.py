"""A graft whose cells may stop: a threshold in evaluation and policy, rounds used by region."""

import numpy as np
import pytest

from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.report import format_report
from roam_jax.tasks.build import build
from tests.evaluate.conftest import make_config, make_params, write_run
from tests.evaluate.test_policy import observe


@pytest.fixture(scope="module")
def halted(weights, toy_root):
    """Two rounds of which each cell runs the second with half of its mass."""
    config = make_config(weights, toy_root)
    config.loop.halting, config.eval.exit_threshold, config.eval.windows = "learned", 0.4, 2
    experiment = build(config)
    params = make_params(experiment)
    loop = params["blocks"]["loop"]
    for name in ("halt", "halt_token"):
        loop[name] = np.zeros_like(loop[name])
    return experiment, params


def test_cells_stop_at_the_threshold_and_the_report_says_when(halted):
    experiment, params = halted
    report = GraftEvaluation(experiment).report(params, rounds=(1, 2))
    one, two = (report["val"]["rounds"][number] for number in "12")
    regions = {*experiment.model.module.layout.regions, "all"}
    assert set(two["rounds_used"]) == regions
    for figures in (one, two):
        assert all(used == pytest.approx(1) for used in figures["rounds_used"].values())
    # Half of every cell has stopped after the first of two rounds, which is enough.
    assert two["actions"]["chunk"]["mse"]["mean"] == pytest.approx(
        one["actions"]["chunk"]["mse"]["mean"], rel=1e-5
    )
    running = np.array(two["measures"]["running"]["visual"])
    np.testing.assert_allclose(running, [[1, 1], [0, 0]], atol=1e-6)
    text = format_report({"task": "graft", "splits": report})
    assert "rounds used, mean over cells and blocks" in text
    last = text.splitlines()[-1].split()
    assert last[:3] == ["rounds", "=", "2"] and set(last[3:]) == {"1.00"}


def test_without_a_threshold_all_rounds_count(halted):
    experiment, params = halted
    with experiment.config.unlocked():
        experiment.config.eval.exit_threshold = 0.0
    try:
        metrics = GraftEvaluation(experiment).metrics(params)
    finally:
        experiment.config.eval.exit_threshold = 0.4
    assert metrics["rounds_used"] == pytest.approx(1.5, rel=1e-5)


def test_a_policy_takes_the_threshold_of_its_run_or_another(halted, tmp_path):
    experiment, params = halted
    run = write_run(tmp_path / "run", experiment, params, scales={6: 1.0})
    observation, text = observe(experiment.splits["val"], 0)
    stopped, one_round = (
        Policy.load(run, **options)(observation, instruction=text)
        for options in ({}, {"rounds": 1, "exit_threshold": 0.0})
    )
    np.testing.assert_allclose(stopped, one_round, rtol=1e-4, atol=1e-6)
    assert Policy.load(run).exit_threshold == 0.4
    assert Policy.load(run, exit_threshold=0.0).exit_threshold is None
    with pytest.raises(ValueError, match="eval.exit_threshold = 1.5: expected"):
        Policy.load(run, exit_threshold=1.5)


def test_thresholds_that_do_not_go_are_refused(halted, experiment):
    halting, _ = halted
    config = halting.config.copy_and_resolve_references()
    config.eval.exit_threshold = -0.5
    with pytest.raises(ValueError, match="eval.exit_threshold = -0.5: expected"):
        GraftEvaluation(build(config))
    config = experiment.config.copy_and_resolve_references()
    config.eval.exit_threshold = 0.5
    with pytest.raises(ValueError, match="exit_threshold = 0.5 with loop.halting = 'none'"):
        GraftEvaluation(build(config))
