"""Experts succeed, and what they leave keeps the action convention."""

import numpy as np
import pytest

from roam_jax.sim.environments import KINDS, VARIED_LOOK, draw_environment
from roam_jax.sim.experts import MAX_STEP, TREMOR, run_expert
from roam_jax.sim.tabletop import POSE_HIGH, POSE_LOW, Tabletop

SEEDS = 20


@pytest.fixture(scope="module", params=KINDS)
def episodes(request):
    runs = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        environment = draw_environment(rng, kind=request.param, look=VARIED_LOOK)
        table = Tabletop(environment.scene)
        # In place of a frame: where the goal's prop is, and the time.
        runs.append(
            run_expert(
                environment,
                table,
                rng=rng,
                camera=lambda t=table, g=environment.goal: np.array(
                    [*t.prop_position(g.prop), t.data.time]
                ),
            )
        )
    return runs


def test_experts_succeed(episodes):
    assert np.mean([episode.success for episode in episodes]) >= 0.95


def test_lengths(episodes):
    for episode in episodes:
        assert 16 <= len(episode.states) <= 28
        assert len(episode.actions) == len(episode.frames) == len(episode.states)
    assert len({len(episode.states) for episode in episodes}) > 2


def test_first_action_is_zero_and_keeps_the_gripper(episodes):
    for episode in episodes:
        np.testing.assert_array_equal(episode.actions[0, :6], 0)
        assert episode.actions[0, 6] == episode.environment.scene.gripper
        np.testing.assert_allclose(episode.states[1], episode.states[0], atol=1e-9)


def test_frame_k_was_seen_at_state_k(episodes):
    for episode in episodes:
        times = np.array(episode.frames)[:, 2]
        np.testing.assert_allclose(times, 0.2 * np.arange(len(times)), atol=1e-9)


def test_actions_integrate_to_states_up_to_the_lag(episodes):
    moves, deltas = [], []
    for episode in episodes:
        integrated = episode.states[0, :6] + np.cumsum(episode.actions[:-1, :6], axis=0)
        lag = np.abs(integrated - episode.states[1:, :6])
        assert lag[:, :3].max() < 0.012 and lag[:, 3:].max() < 0.05
        assert lag.max() > 1e-3
        assert (integrated > POSE_LOW - 1e-9).all() and (integrated < POSE_HIGH + 1e-9).all()
        moves.append(np.diff(episode.states[:, :6], axis=0))
        deltas.append(episode.actions[:-1, :6])
    moves, deltas = np.concatenate(moves), np.concatenate(deltas)
    for axis in range(6):
        correlation = np.corrcoef(moves[:, axis], deltas[:, axis])[0, 1]
        assert 0.95 < correlation < 0.9999
    assert np.linalg.norm(deltas[:, :3], axis=-1).max() < MAX_STEP + 6 * TREMOR[0]
    assert (deltas.std(axis=0) > 0.002).all()


def test_gripper_is_shut_for_pushing_and_open_at_the_end(episodes):
    for episode in episodes:
        assert set(episode.actions[:, 6]) <= {0.0, 1.0}
        assert episode.actions[-1, 6] == 1
        prop = np.array(episode.frames)[:, :2]
        moving = np.linalg.norm(np.diff(prop, axis=0), axis=-1) > 5e-3
        if episode.environment.goal.kind == "push":
            assert moving.sum() >= 3
            assert (episode.states[:-1][moving][:, 6] < 0.05).all()
        else:
            assert not moving.any()
        assert ((episode.states[:, 6] > 0.05) & (episode.states[:, 6] < 0.95)).any()
