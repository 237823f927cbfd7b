"""A cloned run from its workdir alone: action errors, episodes, and as a policy."""

import dataclasses
import json
import shutil

import gymnasium
import jax
import numpy as np
import pytest

import roam_jax.sim.gymnasium_worlds  # noqa: F401
from roam_jax.data.demonstration_batches import ACTION, MASK, Chunks
from roam_jax.evaluate.clone import CloneEvaluation, chunk_errors, measured_steps
from roam_jax.evaluate.play import load_policy, play
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.run import evaluate_workdir
from roam_jax.evaluate.saved import read_saved
from roam_jax.evaluate.stages import make_rollout
from roam_jax.tasks.build import build
from roam_jax.tasks.clone_build import CloneExperiment
from tests.evaluate.conftest import write_run
from tests.tasks.bodies import clone_config

BODY, ROUNDS = "arm2", 2


@pytest.fixture(scope="module")
def cloning():
    changes = {"data.bodies": (BODY,), "eval.windows": 5, "eval.batch_size": 8}
    changes |= {"eval.resamples": 20, "eval.episodes": 4, "eval.replan": 2}
    return build(clone_config(**changes))


@pytest.fixture(scope="module")
def parameters(cloning):
    shapes, rng = jax.eval_shape(cloning.task.init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def cloned(cloning, parameters, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "clone"
    return write_run(path, cloning, parameters, scales={3: 1.0})


def test_errors_by_hand():
    told, actions = np.zeros((1, 3, 2)), np.array([[[1.0, 2.0], [3.0, 0.0], [9.0, 9.0]]])
    found = chunk_errors(told, actions, np.array([[True, True, False]]))
    np.testing.assert_allclose(found["mse"], [(1 + 4 + 9 + 0) / 4])
    np.testing.assert_allclose(found["first_mse"], [2.5])
    np.testing.assert_allclose(found["absolute"], [[2.0, 1.0]])


def test_measured_steps_are_fixed_and_meet_all_of_an_episode_alike():
    found = measured_steps(24_000, 1000)
    assert len(set(found.tolist())) == 1000 and (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, measured_steps(24_000, 1000))
    # Of each of 40 steps of an episode 25 +- 5 (standard deviation); equal distances meet five.
    assert np.bincount(found % 40, minlength=40).min() >= 8
    np.testing.assert_array_equal(measured_steps(5, 0), np.arange(5))
    with pytest.raises(ValueError, match="eval.windows = -1: expected 0"):
        measured_steps(5, -1)


def test_action_errors_are_those_of_the_model(cloning, parameters, tmp_path):
    evaluation = CloneEvaluation(cloning)
    splits = evaluation.report(parameters, rounds=(ROUNDS,))
    assert json.loads(json.dumps(splits)) == splits
    found = splits["val"]["bodies"][BODY]
    assert found["windows"] == 5 and 1 < found["episodes"] <= 5
    recorded = cloning.splits["val"].bodies[BODY]
    batch = Chunks(recorded, chunk=4)[measured_steps(len(recorded.episode), 5)]
    predict = jax.jit(lambda seen: cloning.model.predict(parameters, BODY, seen, rounds=ROUNDS)[0])
    told = predict({stream.name: batch[stream.name] for stream in recorded.spec.streams})
    expected = chunk_errors(np.asarray(told), batch[ACTION], batch[MASK])
    actions = found["rounds"][str(ROUNDS)]["actions"]
    assert actions["mse"]["mean"] == pytest.approx(expected["mse"].mean(), rel=1e-3)
    assert actions["first_mse"]["mean"] == pytest.approx(expected["first_mse"].mean(), rel=1e-3)
    assert list(actions["absolute_error"]) == list(recorded.spec.morphology.joint_names)
    baseline = found["baselines"]["training_mean"]["mse"]["mean"]
    mean = cloning.splits["train"].bodies[BODY].actions.mean(axis=0)
    own = chunk_errors(mean + 0 * batch[ACTION], batch[ACTION], batch[MASK])["mse"].mean()
    assert baseline == pytest.approx(own, rel=1e-5)

    # The same in training, in a table and in a picture.
    curves = evaluation.metrics(parameters)
    assert curves["action_mse"] == pytest.approx(actions["mse"]["mean"], rel=1e-6)
    assert curves[f"action_mse/{BODY}"] == curves["action_mse"]
    evaluation.draw(parameters, splits, tmp_path / "3", rounds=(ROUNDS,))
    assert (tmp_path / "3_exits.png").exists()
    text = format_report({"task": "clone", "splits": splits})
    assert f"{BODY}: 5 windows" in text and f"{baseline:.4f}" in text
    assert all(len(line) < 160 for line in text.splitlines())


def test_episodes_need_no_demonstrations(cloned, tmp_path, monkeypatch):
    def refuse(self, body):
        raise AssertionError("demonstrations were asked for")

    cloned = shutil.copytree(cloned, tmp_path / "run")
    saved = (cloned / "config.json").read_text()
    trained = json.loads(saved)["provenance"]["fingerprints"][f"demonstrations/{BODY}"]
    (cloned / "config.json").write_text(saved.replace(trained, "other"))
    with pytest.raises(ValueError, match=f"demonstrations/{BODY} have fingerprint .*with other"):
        evaluate_workdir(cloned)
    monkeypatch.setattr(CloneExperiment, "folder", refuse)
    path = evaluate_workdir(cloned, rounds=(ROUNDS,), metrics=("rollout",))
    assert path == cloned / "eval" / "3_rollout.json"
    report = json.loads(path.read_text())
    (stage,) = report["splits"]["rollout"]["stages"].values()
    assert stage["expert"]["success"]["mean"] == 1 and stage["steps"] == 40
    assert stage["random"]["success"]["mean"] < 1
    names = {file.name for file in path.parent.iterdir()}
    assert {"3_rollout.png", f"3_rollout_reach_{BODY}.mp4"} <= names
    assert f"reach/{BODY}: 40 steps" in format_report(report)

    # The same run as a policy: it plays the world's environment, and no other body's.
    policy = load_policy(cloned, rounds=1)
    assert policy.step == 3 and policy.chunking.replan == 2
    env = gymnasium.make("roam_jax/reach-arm2-v0")
    found = play(policy, env, episodes=2, steps=3)
    assert len(found.seconds) == 6 and (found.returns < 0).all()
    seen, _ = env.reset(seed=0)
    assert policy(seen, body=BODY).shape == (4, 2)
    with pytest.raises(
        ValueError, match=r"roam_jax/reach-arm3-v0 does not fit body 'arm2'.*3\) th"
    ):
        play(policy, gymnasium.make("roam_jax/reach-arm3-v0"), episodes=1)
    with pytest.raises(ValueError, match="push-arm2-v0 is another world .*here reach, there push"):
        play(policy, gymnasium.make("roam_jax/push-arm2-v0"), episodes=1)


def test_what_does_not_fit_is_refused(cloning, cloned, monkeypatch):
    with pytest.raises(ValueError, match="train.task = 'clone', expected 'graft'"):
        Policy.load(cloned)
    with pytest.raises(ValueError, match="metrics = video: a run of train.task = 'clone'"):
        evaluate_workdir(cloned, metrics=("video",))
    with pytest.raises(ValueError, match="metrics = 'rollouts': expected one of actions, video"):
        evaluate_workdir(cloned, metrics=("rollouts",))
    saved = read_saved(cloned)
    assert dict(saved.experiment().fingerprints) == dict(cloning.fingerprints)
    with pytest.raises(ValueError, match="train.task = 'clone' and 0 worlds .*expected a run of"):
        dataclasses.replace(saved, provenance={}).bodies()
    specs = saved.provenance["specs"]
    changed = {**specs[BODY], "period": 0.5}
    monkeypatch.setitem(saved.provenance, "specs", {BODY: changed})
    with pytest.raises(ValueError, match="world reach/arm2 is not as it was.*seconds between"):
        make_rollout(saved.bodies())
    cloning.config.eval.batch_size = 0
    with pytest.raises(ValueError, match="eval.batch_size = 0"):
        CloneEvaluation(cloning)
