"""Action statistics against numpy, their cache, and the scaling that they define."""

import dataclasses
import json
import os

import numpy as np
import pytest
from absl import logging

from roam_jax.data import statistics as module
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.statistics import (
    PoseStatistics,
    ProprioStatistics,
    RobotStatistics,
    cached_statistics,
    compute_statistics,
)
from tests.data import rlds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


TURN = 2 * np.pi


def written_actions(episodes):
    """Target actions, each step by itself."""
    rows = []
    for episode in episodes:
        change = episode.state[2:] - episode.state[1:-1]
        change[:, 3:6] = np.arctan2(np.sin(change[:, 3:6]), np.cos(change[:, 3:6]))
        gripper = 1.0 if episode.action[-1, 6] > 0.5 else 0.0
        for step in reversed(range(1, len(episode.action))):
            command = episode.action[step, 6]
            gripper = 1.0 if command > 0.95 else 0.0 if command < 0.05 else gripper
            if step < len(episode.action) - 1:
                change[step - 1, 6] = gripper
        rows.append(change)
    return np.concatenate(rows).astype(np.float64)


def write(root, *, val_seed=50):
    train = [rlds.StoredEpisode.random(i, 12 + i) for i in range(6)]
    rlds.write_dataset(root, {"train": train, "val": [rlds.StoredEpisode.random(val_seed, 12)]})
    return written_actions(train)


def test_figures_equal_numpy(tmp_path):
    actions = write(tmp_path / "toy")
    found = compute_statistics(EpisodeReader(tmp_path / "toy", "train"))
    assert (found.actions.count, found.episodes) == (len(actions), 6)
    for name, expected in {
        "mean": actions.mean(0),
        "std": actions.std(0),
        "minimum": actions.min(0),
        "maximum": actions.max(0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }.items():
        np.testing.assert_allclose(getattr(found.actions, name), expected, atol=1e-6, err_msg=name)


def test_states_equal_numpy(tmp_path):
    write(tmp_path / "toy")
    episodes = [rlds.StoredEpisode.random(i, 12 + i) for i in range(6)]
    states = np.concatenate([episode.state[1:] for episode in episodes]).astype(np.float64)
    assert np.abs(states[:, 3:6]).max() < 2  # nothing to wrap
    found = compute_statistics(EpisodeReader(tmp_path / "toy", "train")).proprio
    assert found.count == len(states)
    np.testing.assert_allclose(found.mean, states.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.q01, np.quantile(states, 0.01, axis=0), atol=1e-6)
    np.testing.assert_allclose(found.q99, np.quantile(states, 0.99, axis=0), atol=1e-6)


def test_a_seam_in_the_data_changes_nothing(tmp_path):
    """Yaws around half a turn, stored in (-pi, pi]: scaled like the same yaws around 0."""
    plain = [rlds.StoredEpisode.random(i, 12) for i in range(4)]
    turned = [rlds.StoredEpisode.random(i, 12) for i in range(4)]
    for episode in turned:
        yaw = episode.state[:, 5] + 3.0
        episode.state[:, 5] = np.arctan2(np.sin(yaw), np.cos(yaw))
    states = {}
    for name, episodes in {"plain": plain, "turned": turned}.items():
        root = rlds.write_dataset(tmp_path / name, {"train": episodes})
        proprio = compute_statistics(EpisodeReader(root, "train")).proprio
        states[name] = proprio.normalise(np.concatenate([e.state for e in episodes]))
    jumps = np.abs(np.diff(np.concatenate([e.state[:, 5] for e in turned])))
    assert (jumps > np.pi).any()
    np.testing.assert_allclose(states["turned"], states["plain"], atol=1e-5)


def test_real_train_split(bridge_root):
    found = compute_statistics(EpisodeReader(bridge_root, "train"))
    assert (found.actions.count, found.proprio.count, found.episodes) == (16 * 8, 16 * 9, 16)
    assert found.actions.constant == found.proprio.constant == ()
    assert found.actions.minimum[6] == 0 and found.actions.maximum[6] == 1


def test_the_val_split_changes_nothing(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", val_seed=51)
    one, two = (compute_statistics(EpisodeReader(tmp_path / n, "train")) for n in ("one", "two"))
    assert dataclasses.replace(one, root="") == dataclasses.replace(two, root="")
    with pytest.raises(ValueError, match="split 'val': expected 'train'"):
        compute_statistics(EpisodeReader(tmp_path / "one", "val"))


def test_made_once_for_each_content(tmp_path, cache, monkeypatch):
    write(tmp_path / "toy")
    first = cached_statistics(EpisodeReader(tmp_path / "toy", "train"))
    (path,) = (cache / "statistics").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "compute_statistics", None)
        assert cached_statistics(EpisodeReader(tmp_path / "toy", "train")) == first
        (tmp_path / "toy").rename(tmp_path / "moved")
        moved = cached_statistics(EpisodeReader(tmp_path / "moved", "train"))
        assert moved == dataclasses.replace(first, root=str(tmp_path / "moved"))
    train = [rlds.StoredEpisode.random(i, 12) for i in range(20, 22)]
    rlds.write_dataset(tmp_path / "toy", {"train": train})
    assert cached_statistics(EpisodeReader(tmp_path / "toy", "train")).actions.count == 20
    assert len(list((cache / "statistics").iterdir())) == 2
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=f"{path}: .*delete it"):
        cached_statistics(EpisodeReader(tmp_path / "moved", "train"))


def test_nothing_half_written(tmp_path, cache, monkeypatch):
    write(tmp_path / "toy")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_statistics(EpisodeReader(tmp_path / "toy", "train"))
    assert not list((cache / "statistics").glob("*.json"))


def make(kind=PoseStatistics, **changes):
    zeros, ones = (0.0,) * 7, (1.0,) * 7
    low = (-0.1, -0.2, -0.3, -0.4, 0.5, 0.0, 0.0)
    high = (0.1, 0.4, 0.3, 0.0, 0.7, 0.0, 1.0)
    fields = {"mean": zeros, "std": ones, "minimum": zeros, "maximum": ones}
    fields |= {"q01": low, "q99": high}
    return kind(count=3, **{**fields, **changes})


def test_scaling_is_linear_between_the_quantiles():
    statistics = make()
    assert statistics.constant == ("yaw",)
    low, high = np.float32(statistics.q01), np.float32(statistics.q99)
    rows = np.stack([low, (low + high) / 2, high, low - 1, high + 1])
    rows[:, 6] = 0, 0.5, 1, 0, 1
    expected = np.repeat(np.float32([-1, 0, 1, -1, 1]), 7).reshape(5, 7)
    expected[:, 5] = 0
    expected[:, 6] = rows[:, 6]
    scaled = statistics.normalise(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    np.testing.assert_allclose(statistics.unnormalise(scaled)[:3], rows[:3], atol=1e-6)


def test_states_are_scaled_by_hand():
    """Closed form: turns taken off, what lies outside of the range clipped to its nearer end."""
    proprio = make(ProprioStatistics, q01=(0.1, 0, 0, 3, -3.4, 0, 0), q99=(0.3, 1, 1, 4, -3, 1, 1))
    rows = np.zeros((5, 7), np.float32)
    rows[:, 0] = 0.1, 0.2, 0.3, 0.0, 1.0
    rows[:, 3] = 3.5 - TURN, 3.75, -3.0, 2.9, 4.1 - TURN
    rows[:, 4] = -3.2, 3.1, 3.2, -2.9, 2.8
    rows[:, 6] = -0.1, 0.26, 1.007, 0.5, 1
    scaled = proprio.normalise(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, 0], [-1, 0, 1, -1, 1], atol=1e-6)
    roll = [0, 0.5, 2 * (TURN - 3 - 3) - 1, -1, 1]
    np.testing.assert_allclose(scaled[:, 3], roll, atol=1e-6)
    pitch = [0, 5 * (3.1 - TURN + 3.4) - 1, 5 * (3.2 - TURN + 3.4) - 1, 1, -1]
    np.testing.assert_allclose(scaled[:, 4], pitch, atol=1e-5)
    np.testing.assert_allclose(scaled[:, 6], [0, 0.26, 1, 0.5, 1], atol=1e-6)
    # The same angle comes back, at the turn where the range lies.
    back = proprio.unnormalise(scaled)
    np.testing.assert_allclose(back[:3, 3], [3.5, 3.75, TURN - 3], atol=1e-6)
    np.testing.assert_array_equal(rows[:, 6], np.float32([-0.1, 0.26, 1.007, 0.5, 1]))


def test_a_state_is_scaled_by_itself():
    """No other row, earlier or later, has a say in a scaled state."""
    proprio = make(ProprioStatistics)
    rows = np.random.default_rng(0).normal(0, 3, (6, 7)).astype(np.float32)
    alone = np.stack([proprio.normalise(row) for row in rows])
    np.testing.assert_array_equal(proprio.normalise(rows), alone)


def test_json_keeps_every_digit(bridge_root):
    statistics = compute_statistics(EpisodeReader(bridge_root, "train"))
    assert RobotStatistics.from_json(statistics.to_json()) == statistics


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"q01 = .*expected 7 finite numbers"):
        make(q01=(0.0,) * 6)
    whole = dataclasses.asdict(RobotStatistics(make(), make(ProprioStatistics), 1, "f", "r"))
    assert RobotStatistics.from_json(json.dumps(whole)).actions == make()
    for bad in ({"count": 3}, {**whole, "proprio": {"count": 3}}, {**whole, "actions": None}):
        with pytest.raises(ValueError, match="expected a JSON object"):
            RobotStatistics.from_json(json.dumps(bad))


def test_a_constant_dimension_is_said(tmp_path, monkeypatch):
    episode = rlds.StoredEpisode.random(0, 12)
    episode.state[:, 1] = 0.25
    rlds.write_dataset(tmp_path / "toy", {"train": [episode]})
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    statistics = cached_statistics(EpisodeReader(tmp_path / "toy", "train"))
    assert statistics.actions.constant == statistics.proprio.constant == ("y",)
    assert [text.split(" never")[0] for text in said] == [
        "statistics: y of actions",
        "statistics: y of proprio",
    ]
