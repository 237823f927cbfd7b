"""Episodes of worlds whose outcome is known by hand."""

import numpy as np
import pytest

from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.rollouts import (
    ChunkPlayer,
    Film,
    RandomPlayer,
    draws_rng,
    play_worlds,
    starts_rng,
)
from tests.evaluate.fakes import STEP, FakeExpert, FakeWorlds

GOALS = [[0.3, -0.5], [0.8, 0.0], [2.0, 0.1]]


def played(player, worlds, *, steps=10, **options):
    return play_worlds(worlds, player, steps=steps, rng=np.random.default_rng(0), **options)


def test_success_is_that_of_the_last_step_and_rewards_add_up():
    found = played(FakeExpert(), FakeWorlds(GOALS))
    assert found.success.tolist() == [True, True, False]
    away = [max(0.5 - STEP * (t + 1), 0) for t in range(10)]
    assert found.returns[0] == pytest.approx(-sum(away))
    assert len(found.seconds) == 10 and (found.seconds > 0).all()
    assert found.counted.all() and found.frames is None
    shorter = played(FakeExpert(), FakeWorlds(GOALS), steps=5)
    assert shorter.success.tolist() == [True, False, False]


def test_a_world_that_diverges_leaves_the_others_alone():
    alone = played(FakeExpert(), FakeWorlds(GOALS))
    beside = played(FakeExpert(), FakeWorlds(GOALS, diverging={1: 4}))
    assert beside.diverged.tolist() == [False, True, False]
    assert not beside.success[1] and np.isfinite(beside.returns).all()
    for row in (0, 2):
        assert beside.returns[row] == alone.returns[row]
        assert beside.success[row] == alone.success[row]


def test_a_chunk_player_sees_what_is_there_and_no_broken_numbers():
    seen, worlds = [], FakeWorlds(GOALS, diverging={1: 2})

    def predict(observations):
        assert all(np.isfinite(rows).all() for rows in observations.values())
        seen.append(observations["joints"][:, 0, 0].copy())
        return np.full((3, 4, 2), 3.0)

    player = ChunkPlayer(predict, chunking=Chunking(replan=2), pixels=8)
    played(player, worlds, steps=5)
    # Once before the first step, so that no step waits for a compiler; then steps 0, 2 and 4.
    assert len(seen) == 4
    np.testing.assert_allclose([row[0] for row in seen], [0, 0, 0.2, 0.4], atol=1e-6)
    assert seen[-1][1] == 0
    actions = np.array(worlds.actions)
    # Cut to [-1, 1]; a world that diverged is left alone.
    assert (actions[:, [0, 2]] == 1).all() and (actions[2:, 1] == 0).all()


def test_random_actions_are_repeatable_and_fill_the_range():
    runs = []
    for _ in range(2):
        worlds = FakeWorlds(np.zeros((50, 2)))
        play_worlds(worlds, RandomPlayer(2), steps=20, rng=draws_rng("reach/arm2", "random"))
        runs.append(np.array(worlds.actions))
    np.testing.assert_array_equal(*runs)
    assert runs[0].min() < -0.99 and runs[0].max() > 0.99 and abs(runs[0].mean()) < 0.05


def test_films():
    worlds = FakeWorlds(GOALS)
    found = played(FakeExpert(), worlds, film=Film((0, 2), size=4, stride=4))
    # Before the first action, after every fourth, and at the end.
    assert found.frames.shape == (2, 4, 4, 4, 3)
    assert found.frames[0, :, 0, 0, 0].tolist() == [0, 4, 8, 10]
    assert found.solved.tolist() == [[False, False, True, True], [False] * 4]


def test_streams_of_starts_and_draws_are_apart():
    draws = [
        rng.integers(1 << 40)
        for rng in (
            starts_rng("reach/arm2"),
            starts_rng("reach/arm3"),
            draws_rng("reach/arm2", "expert"),
            draws_rng("reach/arm2", "random"),
            np.random.default_rng(0),
        )
    ]
    assert len(set(draws)) == len(draws)
    assert starts_rng("reach/arm2").integers(1 << 40) == draws[0]
