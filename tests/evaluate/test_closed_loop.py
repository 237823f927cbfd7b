"""From played episodes to a report, its table, pictures and films."""

import json

import numpy as np
import pytest
import scipy.stats

from roam_jax.evaluate.closed_loop import RolloutEvaluation, RolloutOptions
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.report_rollout import EXPERT
from roam_jax.evaluate.rollout_figures import rollout_figures
from roam_jax.evaluate.rollouts import Film, RandomPlayer, Rollouts, play_worlds
from roam_jax.evaluate.seeds import format_seeds, seeds_report
from roam_jax.video_files import read_frames
from tests.evaluate.fakes import FakeExpert, FakeWorlds

GOALS = np.linspace(0.05, 1.2, 20)[:, None] * [1, -1]


def rollouts(success, returns, diverged=None):
    count = len(success)
    diverged = np.zeros(count, bool) if diverged is None else np.array(diverged, bool)
    return Rollouts(np.array(success, bool), np.array(returns, float), diverged, np.full(4, 0.002))


def test_figures_by_hand():
    found = rollouts([1, 0, 1, 1], [2.0, 1.0, 3.0, np.nan], [0, 0, 0, 1])
    expert = rollouts([1, 1, 1, 1], [4.0, 2.0, 3.0, 5.0])
    figures = rollout_figures(found, expert, name="x", resamples=100)
    assert figures["success"]["mean"] == pytest.approx(2 / 3)
    wilson = scipy.stats.binomtest(2, 3).proportion_ci(method="wilson")
    np.testing.assert_allclose(figures["success"]["interval"], (wilson.low, wilson.high))
    assert figures["return"]["mean"] == pytest.approx(2.0)
    assert figures["diverged"] == 1 and figures["diverged_episodes"] == [3]
    assert figures["minus_expert"]["return"]["mean"] == pytest.approx(-1.0)
    assert figures["minus_expert"]["success"]["mean"] == pytest.approx(-1 / 3)
    assert figures["of_expert"]["mean"] == pytest.approx(6 / 9)
    assert figures["step_ms"]["average"] == pytest.approx(2.0)
    below = rollouts([1, 1, 1, 1], [4.0, -2.0, 3.0, 5.0])
    assert "of_expert" not in rollout_figures(found, below, name="x", resamples=10)
    # Whether there is a ratio does not depend on the policy's episodes that diverged.
    later = rollouts([1, 1, 1, 1], [4.0, 2.0, 3.0, -5.0])
    assert "of_expert" not in rollout_figures(found, later, name="x", resamples=10)
    assert "minus_expert" not in rollout_figures(expert, name="x", resamples=10)
    lost = rollouts([0, 0], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="reach/arm2, expert: all 2 episodes diverged"):
        rollout_figures(lost, name="reach/arm2, expert", resamples=10)


class Slow(FakeExpert):
    """A policy that gets farther with more rounds."""

    def __init__(self, speed):
        self.speed = speed

    def act(self, worlds):
        return self.speed * super().act(worlds)


class FakeStage:
    steps, period, film_rate = 8, 0.1, 10.0

    def __init__(self, name, diverging=None):
        self.name, self.played, self._diverging = name, [], diverging

    def reference(self, player):
        self.played.append(player)
        film = Film((0, 1), size=16) if player == EXPERT else None
        return self._play(FakeExpert() if player == EXPERT else RandomPlayer(2), film)

    def policy(self, params, *, rounds, filmed):
        film = Film((0, 1), size=16) if filmed else None
        return self._play(Slow(params["speed"] * rounds), film, self._diverging)

    def _play(self, player, film, diverging=None):
        worlds = FakeWorlds(GOALS, diverging=diverging)
        rng = np.random.default_rng(0)
        return play_worlds(worlds, player, steps=self.steps, rng=rng, film=film)


@pytest.fixture
def stages():
    return FakeStage("line/one"), FakeStage("line/two", diverging={3: 2})


@pytest.fixture
def evaluation(stages):
    options = RolloutOptions(len(GOALS), Chunking(replan=2, ensembling=True), resamples=50)
    return RolloutEvaluation(stages, options, trained=2, extrapolate="last")


def whole_report(splits):
    return {"step": 7, "task": "clone", "splits": splits}


def test_a_report(evaluation, stages, tmp_path):
    rounds = evaluation.rounds((1, 2, 3))
    splits = evaluation.report({"speed": 0.3}, rounds=rounds)
    assert json.loads(json.dumps(splits)) == splits
    found = splits["rollout"]
    assert (found["episodes"], found["replan"], found["ensembling"]) == (20, 2, True)
    one, two = found["stages"].values()
    successes = [one["rounds"][n]["success"]["mean"] for n in "123"]
    assert successes == sorted(successes) and successes[0] < successes[-1]
    # The expert takes 8 steps of 0.1 and must come within 0.06.
    assert one["expert"]["success"]["mean"] == np.mean(GOALS[:, 0] < 0.86)
    assert one["random"]["success"]["mean"] < 0.3
    assert two["rounds"]["1"]["diverged_episodes"] == [3] and one["rounds"]["1"]["diverged"] == 0
    assert [one["rounds"][n]["extrapolated"] for n in "123"] == [False, False, True]

    text = format_report(whole_report(splits))
    assert "line/one: 8 steps of 0.1 s" in text and "rounds = 3 *" in text
    assert "line/two, rounds = 2: physics diverged in episode(s) 3, which no figure" in text
    assert f"{one['expert']['success']['mean']:.3f} [" in text
    assert all(len(line) < 160 for line in text.splitlines())

    evaluation.draw(None, splits, tmp_path / "7", rounds=rounds)
    assert {path.name for path in tmp_path.iterdir()} == {
        "7_rollout.png",
        "7_rollout_line_one.mp4",
        "7_rollout_line_two.mp4",
    }
    assert len(read_frames(tmp_path / "7_rollout_line_one.mp4")) == 9


def test_seeds_share_what_no_training_changes(evaluation, stages):
    reports = {
        seed: whole_report(evaluation.report({"speed": speed}, rounds=(1,)))
        for seed, speed in {0: 0.3, 5: 0.5, 9: 1.0}.items()
    }
    assert sorted(stages[0].played) == ["expert", "random"]
    merged = seeds_report(reports)
    stage = merged["splits"]["rollout"]["stages"]["line/one"]
    success = stage["rounds"]["1"]["success"]
    means = [
        r["splits"]["rollout"]["stages"]["line/one"]["rounds"]["1"]["success"]["mean"]
        for r in reports.values()
    ]
    assert success["values"] == means and success["mean"] == pytest.approx(np.mean(means))
    alone = reports[0]["splits"]["rollout"]["stages"]["line/one"]
    assert stage["expert"]["success"] == alone["expert"]["success"]
    assert "line/one" in format_seeds(merged)


def test_divergence_of_several_seeds():
    def one(*episodes):
        return {"splits": {"diverged": len(episodes), "diverged_episodes": list(episodes)}}

    merged = seeds_report({0: one(), 1: one(3, 5), 2: one(5)})["splits"]
    assert merged == {"diverged": 1.0, "diverged_episodes": [3, 5]}
    assert seeds_report({0: one(4), 1: one(4)})["splits"] == one(4)["splits"]


def test_what_is_out_of_range_is_refused(evaluation):
    with pytest.raises(ValueError, match="eval.episodes = 0: expected at least 1"):
        RolloutOptions(0, Chunking(), resamples=10)
    with pytest.raises(ValueError, match="eval.resamples = 0: expected at least 1"):
        RolloutOptions(1, Chunking(), resamples=0)
    strict = RolloutEvaluation(
        (), RolloutOptions(1, Chunking(), resamples=10), trained=2, extrapolate=None
    )
    with pytest.raises(ValueError, match="rounds = 3"):
        strict.rounds((3,))
