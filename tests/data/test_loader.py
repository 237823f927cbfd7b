"""Batches: their order, their resume, and splits that share nothing."""

import itertools
import json

import numpy as np
import pytest

from roam_jax.contracts import TimeSpec
from roam_jax.data.loader import make_loader, split_windows
from tests.data import rlds

TIME = TimeSpec(frames=5, t_current=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


def open_splits(root, camera="image_0", image_size=8, time=TIME):
    return split_windows(root, camera=camera, image_size=image_size, time=time)


@pytest.fixture
def train(tmp_path):
    """11 windows: 3, 3 and 5 of three episodes."""
    episodes = [rlds.StoredEpisode.random(i, steps) for i, steps in enumerate((8, 8, 10))]
    val = [rlds.StoredEpisode.random(9, 8)]
    root = rlds.write_dataset(tmp_path / "toy", {"train": episodes, "val": val})
    return open_splits(root)[0]


def identities(batch):
    return list(zip(batch["episode"].tolist(), batch["start"].tolist(), strict=True))


def take(loader, count):
    return [identities(batch) for batch in itertools.islice(loader, count)]


def test_a_batch_is_the_windows_stacked(train):
    batch = next(make_loader(train, batch_size=4, seed=0))
    for row, (episode, start) in enumerate(identities(batch)):
        window = train[train.window_index(episode, start)]
        assert batch.keys() == window.keys()
        for name, array in window.items():
            np.testing.assert_array_equal(batch[name][row], array)
            assert batch[name].dtype == array.dtype


def test_batch_k_depends_on_seed_and_k_alone(train):
    first = take(make_loader(train, batch_size=3, seed=1), 12)
    assert take(make_loader(train, batch_size=3, seed=1), 12) == first
    assert take(make_loader(train, batch_size=3, seed=2), 12) != first


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_epoch_holds_every_window_once_in_another_order(train, batch_size):
    # 16 exceeds the 11 windows: batches run on into the next epoch and no window is lost.
    batches = take(make_loader(train, batch_size=batch_size, seed=5), 33 // batch_size + 1)
    order = list(itertools.chain(*batches))
    epochs = [order[:11], order[11:22], order[22:33]]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 11
    assert epochs[0] != epochs[1] != epochs[2]


def test_without_shuffling_the_order_is_the_source(train):
    order = itertools.chain(*take(make_loader(train, batch_size=2, seed=0, shuffle=False), 11))
    expected = [(int(train[i]["episode"]), int(train[i]["start"])) for i in range(11)]
    assert list(order) == expected * 2


def test_resume_gives_the_same_batches(train):
    loader = make_loader(train, batch_size=4, seed=3)
    expected = take(loader, 9)
    for done in (0, 1, 5, 8):
        loader = make_loader(train, batch_size=4, seed=3)
        take(loader, done)
        state = json.loads(json.dumps(loader.get_state()))
        resumed = make_loader(train, batch_size=4, seed=3)
        take(resumed, 2)
        resumed.set_state(state)
        assert take(resumed, 9 - done) == expected[done:]


def test_a_state_of_other_data_is_refused(train, tmp_path):
    state = make_loader(train, batch_size=4, seed=3).get_state()
    with pytest.raises(ValueError, match="seed: saved 3, now 4; batch_size: saved 4, now 2"):
        make_loader(train, batch_size=2, seed=4).set_state(state)
    others = [rlds.StoredEpisode.random(i, steps) for i, steps in enumerate((8, 8, 10), start=30)]
    splits = {"train": others, "val": [rlds.StoredEpisode.random(9, 8)]}
    root = rlds.write_dataset(tmp_path / "other", splits)
    with pytest.raises(ValueError, match="fingerprint: saved"):
        make_loader(open_splits(root)[0], batch_size=4, seed=3).set_state(state)


@pytest.mark.parametrize(("batch_size", "seed"), [(0, 0), (1, -1), (1, 1 << 32)])
def test_bad_settings(train, batch_size, seed):
    with pytest.raises(ValueError, match="expected"):
        make_loader(train, batch_size=batch_size, seed=seed)


def test_real_splits_share_no_episode_and_one_scale(bridge_root):
    train, val, statistics = open_splits(bridge_root, image_size=64, time=TimeSpec(9, 2))
    assert (len(train), len(val), statistics.episodes) == (16, 4, 16)
    assert train.statistics is val.statistics is statistics
    names = [header.name for header in train.reader.headers + val.reader.headers]
    assert len(set(names)) == 20
    batch = next(make_loader(train, batch_size=32, seed=0))
    assert batch["frames"].shape == (32, 9, 64, 64, 3)
    assert np.abs(batch["action_chunk"][..., :6]).max() == 1


@pytest.mark.parametrize("name", [None, ""])
def test_an_episode_in_both_splits_is_refused(tmp_path, name):
    """By its recorded name, and without one by its states."""
    episodes = [rlds.StoredEpisode.random(i, 8, name=name) for i in range(3)]
    root = rlds.write_dataset(tmp_path / "toy", {"train": episodes, "val": episodes[1:2]})
    with pytest.raises(ValueError, match="1 episodes lie in both train and val"):
        open_splits(root)
