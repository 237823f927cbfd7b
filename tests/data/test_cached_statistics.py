"""Statistics of a train split against numpy, in pieces and whole, and their cache."""

import dataclasses
import functools
import os
import pathlib

import numpy as np
import pytest
from absl import logging

from roam_jax.data import accumulate
from roam_jax.data import cached_statistics as module
from roam_jax.data.accumulate import Accumulator
from roam_jax.data.cached_statistics import cached_statistics, compute_statistics, rate_line
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.declaration import DatasetDeclaration, Published, Stored
from tests.data import rlds


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda text, *values: lines.append(text % values))
    return lines


ARM = DatasetDeclaration(
    name="arm",
    cameras={"front": "steps/front"},
    state=(
        Stored(("hand",), "steps/state", kind="gripper", columns=(0,)),
        Stored(("elbow", "wrist"), "steps/state", unit="rad", kind="angle", columns=(1, 2)),
    ),
    action=(Stored(("push",), "steps/action", unit="N"),),
    rate=10.0,
    splits=("learn", "check"),
    published=Published(("arms",), q01=(-1.0,), q99=(1.0,)),
)


@dataclasses.dataclass(frozen=True)
class Header:
    name: str


class FakeReader:
    """Episodes in memory, by the contract that statistics ask for."""

    root = pathlib.Path("/arms/1.0.0")
    dataset = "arms/1.0.0"

    def __init__(self, episodes, *, split="learn", fingerprint="f", declaration=ARM):
        self.episodes = episodes
        self.split = split
        self.fingerprint = fingerprint
        self.declaration = declaration
        self.headers = [Header(f"take{i}") for i in range(len(episodes))]
        self.asked = []

    def __len__(self):
        return len(self.episodes)

    def motion(self, index, stride=1):
        self.asked.append(index)
        actions, states = self.episodes[index]
        return actions[: len(actions) + 1 - stride], states

    @classmethod
    def random(cls, lengths, *, size=1.0, **options):
        rng = np.random.default_rng(len(lengths))
        episodes = []
        for steps in lengths:
            elbow = rng.normal(3, 0.3, steps)
            angles = [np.arctan2(np.sin(elbow), np.cos(elbow)), rng.normal(0, 0.3, steps)]
            states = np.stack([rng.random(steps), *angles], axis=1)
            actions = rng.normal(0, 0.43 * size, (max(0, steps - 1), 1))
            episodes.append((actions.astype(np.float32), states.astype(np.float32)))
        return cls(episodes, **options)


def test_any_dimensions_at_any_rate():
    reader = FakeReader.random((5, 0, 30, 1, 7))
    found = compute_statistics(reader, stride=2)
    assert (found.actions.spec, found.proprio.spec) == (ARM.action_spec, ARM.state_spec)
    assert (found.actions.count, found.proprio.count, found.episodes) == (3 + 28 + 5, 43, 5)
    assert (found.rate, found.root) == (5.0, "/arms/1.0.0")
    states = np.concatenate([states for _, states in reader.episodes])
    turned = states.copy()
    turned[:, 1] %= 2 * np.pi  # in one piece around 3
    assert np.ptp(states[:, 1]) > 6 > np.ptp(turned[:, 1])
    np.testing.assert_allclose(found.proprio.mean, turned.mean(axis=0), atol=1e-6)
    expected = np.quantile(turned, (0.01, 0.99), axis=0)
    np.testing.assert_allclose([found.proprio.q01, found.proprio.q99], expected, atol=1e-6)


def test_states_without_angles():
    plain = dataclasses.replace(ARM, state=ARM.state[:1])
    reader = FakeReader.random((5, 6), declaration=plain)
    reader.episodes = [(actions, states[:, :1]) for actions, states in reader.episodes]
    found = compute_statistics(reader).proprio
    states = np.concatenate([states for _, states in reader.episodes])
    assert (found.count, found.maximum) == (11, (float(states.max()),))


def test_read_again_only_where_the_rows_do_not_fit(monkeypatch):
    reader = FakeReader.random((400,) * 50)
    exact = compute_statistics(reader)
    assert reader.asked == list(range(50))
    monkeypatch.setattr(module, "Accumulator", functools.partial(Accumulator, exact_bytes=0))
    monkeypatch.setattr(accumulate, "BLOCK_ROWS", 1000)
    sketched = compute_statistics(reader)
    assert reader.asked == 3 * list(range(50))
    assert sketched != exact
    for kind in ("actions", "proprio"):
        one, two = getattr(exact, kind), getattr(sketched, kind)
        np.testing.assert_allclose(two.mean, one.mean, rtol=1e-9)
        np.testing.assert_allclose(two.std, one.std, rtol=1e-9)
        np.testing.assert_allclose([two.q01, two.q99], [one.q01, one.q99], rtol=0.02)


def test_a_number_that_is_not_finite_is_named():
    for what, column, value, named in (
        (1, 2, np.nan, "states: NaN or infinite numbers in wrist"),
        (0, 0, np.inf, "actions: NaN or infinite numbers in push"),
    ):
        reader = FakeReader.random((5, 6, 7))
        reader.episodes[1][what][3, column] = value
        message = f"arms/1.0.0 in /arms/1.0.0: episode take1, {named}; expected"
        with pytest.raises(ValueError, match=message):
            compute_statistics(reader)


def test_only_the_train_split_and_only_with_transitions():
    with pytest.raises(ValueError, match="split 'check': expected 'learn'"):
        compute_statistics(FakeReader.random((5,), split="check"))
    with pytest.raises(ValueError, match="/arms/1.0.0: no transition in the 2 train episodes"):
        compute_statistics(FakeReader.random((1, 0)))


def test_made_again_for_other_content_meaning_and_rate(cache):
    def files(reader, **options):
        cached_statistics(reader, **options)
        return len(list((cache / "statistics").iterdir()))

    assert files(FakeReader.random((5, 6))) == 1
    renamed = dataclasses.replace(ARM, name="other")
    assert files(FakeReader.random((5, 6), declaration=renamed)) == 1
    assert files(FakeReader.random((5, 6)), stride=2) == 2
    assert files(FakeReader.random((5, 6), fingerprint="g")) == 3
    faster = dataclasses.replace(ARM, rate=20.0)
    assert files(FakeReader.random((5, 6), declaration=faster)) == 4


def test_a_faster_process_is_followed(cache, monkeypatch):
    """Sketches choose at random, so that two processes would scale a little differently."""
    reader = FakeReader.random((5, 6))

    def slowly(reader, *, stride):
        first = compute_statistics(reader, stride=stride)
        (cache / "statistics").mkdir(parents=True)
        path = module.cache_path(first.fingerprint)
        path.write_text(first.to_json())
        return dataclasses.replace(first, episodes=99)

    monkeypatch.setattr(module, "compute_statistics", slowly)
    assert cached_statistics(reader).episodes == 2


def test_published_figures_are_a_sanity_range(said):
    def warnings(reader, **options):
        said.clear()
        cached_statistics(reader, **options)
        return [line for line in said if "published" in line]

    assert warnings(FakeReader.random((500,))) == []
    large = {"size": 100.0, "fingerprint": "large"}
    (line,) = warnings(FakeReader.random((500,), **large))
    assert line.startswith("statistics: arms/1.0.0 in /arms/1.0.0: over 499 transitions")
    assert "push q01 -" in line and "(-1), push q99" in line and "(1). Likely reasons:" in line
    assert len(warnings(FakeReader.random((500,), **large))) == 1  # from the cache as well
    assert warnings(FakeReader.random((500,), **large), stride=2) == []
    reader = FakeReader.random((500,), **large)
    reader.dataset = "arms_of_others/1.0.0"
    assert warnings(reader) == []
    reader.declaration = dataclasses.replace(ARM, published=None)
    reader.dataset = "arms/1.0.0"
    assert warnings(reader) == []


def test_the_rate_is_said(said):
    compute_statistics(FakeReader.random((5, 6)))
    assert said[-1].startswith("statistics: 2 episodes, 9 transitions in 0.0 s (")
    assert rate_line(episodes=2000, transitions=60_000, seconds=1.0) == (
        "statistics: 2,000 episodes, 60,000 transitions in 1.0 s (0.50 ms an episode of 30.0); the "
        "full BridgeData V2 (60,064 episodes of 35.6) would take about 30 s at this rate"
    )


def test_the_time_left_is_said_every_thirty_seconds(said, monkeypatch):
    reader = FakeReader.random((5,) * 10)
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    read = reader.motion

    def slow(index, stride=1):
        clock[0] += 8.0
        return read(index, stride)

    monkeypatch.setattr(reader, "motion", slow)
    compute_statistics(reader)
    lines = [line for line in said if "left" in line]
    assert lines == [
        "statistics: 40 % of the episodes read, about 48 s left",
        "statistics: 80 % of the episodes read, about 16 s left",
    ]


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
    assert (found.actions.count, found.episodes, found.rate) == (len(actions), 6, 5.0)
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
    """Every figure has the bits of numpy's over all rows at once, angles near their mean."""
    reader = EpisodeReader(bridge_root, "train")
    found = compute_statistics(reader)
    assert (found.actions.count, found.proprio.count, found.episodes) == (16 * 8, 16 * 9, 16)
    assert found.actions.constant == found.proprio.constant == ()
    assert found.actions.minimum[6] == 0 and found.actions.maximum[6] == 1
    # Row after row in memory, which decides how numpy sums.
    actions, states = map(np.vstack, zip(*map(reader.motion, range(16)), strict=True))
    actions, states = np.ascontiguousarray(actions), np.ascontiguousarray(states)
    angles = states[:, 3:6].astype(np.float64)
    middle = np.arctan2(np.sin(angles).mean(axis=0), np.cos(angles).mean(axis=0))
    states[:, 3:6] = angles - 2 * np.pi * np.round((angles - middle) / (2 * np.pi))
    for statistics, rows in ((found.actions, actions), (found.proprio, states)):
        np.testing.assert_array_equal(statistics.mean, rows.mean(axis=0, dtype=np.float64))
        np.testing.assert_array_equal(statistics.std, rows.std(axis=0, dtype=np.float64))
        low, high = np.quantile(rows, (0.01, 0.99), axis=0)
        np.testing.assert_array_equal([statistics.q01, statistics.q99], [low, high])


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


def test_nothing_half_written(cache, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_statistics(FakeReader.random((5, 6)))
    assert not list((cache / "statistics").glob("*.json"))


def test_a_constant_dimension_is_said(tmp_path, said):
    episode = rlds.StoredEpisode.random(0, 12)
    episode.state[:, 1] = 0.25
    rlds.write_dataset(tmp_path / "toy", {"train": [episode]})
    statistics = cached_statistics(EpisodeReader(tmp_path / "toy", "train"))
    assert statistics.actions.constant == statistics.proprio.constant == ("y",)
    assert [text.split(" never")[0] for text in said if "never" in text] == [
        "statistics: y of actions",
        "statistics: y of proprio",
    ]
