"""Figures of a dataset against loops over its episodes."""

import itertools

import numpy as np
import pytest

from roam_jax.contracts import TimeSpec
from roam_jax.data.members import DatasetChoice, open_members
from roam_jax.data.summary import BINS, spread_evenly, summarise_members, summarise_split
from roam_jax.data.windows import WindowOptions
from tests.data import rlds

LENGTHS = {"train": (14, 10, 8, 30), "val": (12, 5)}
FRAMES = 9


def write_episodes(root):
    splits, seed = {"train": [], "val": []}, 0
    for split, lengths in LENGTHS.items():
        for steps in lengths:
            episode = rlds.StoredEpisode.random(seed, steps)
            episode.instruction = ("open the drawer", " ", "close it")[len(splits[split]) % 3]
            # Angles on both sides of the seam.
            episode.state[:, 5] = np.where(episode.state[:, 5] > 0, 3.1, -3.1)
            splits[split].append(episode)
            seed += 1
    return splits, rlds.write_dataset(root, splits)


class EmptyEpisode:
    """An episode without a step, in Bridge's layout."""

    frames = np.zeros((0, 8, 8, 3), np.uint8)

    def example(self) -> bytes:
        """Its serialized tf.train.Example, where only the name holds something."""
        texts, floats, integers = 1, 2, 3
        values = {
            "observation/image_0": texts,
            "observation/image_1": texts,
            "observation/state": floats,
            "action": floats,
            "reward": floats,
            "language_instruction": texts,
            "language_embedding": floats,
        }
        found = {f"steps/{name}": (kind, b"") for name, kind in values.items()}
        found["episode_metadata/file_path"] = texts, rlds.field(1, b"/recordings/none.npy")
        found["episode_metadata/episode_id"] = integers, rlds.field(1, rlds.varint(7))
        entries = [
            rlds.field(1, rlds.field(1, name.encode()) + rlds.field(2, rlds.field(*value)))
            for name, value in found.items()
        ]
        return rlds.field(1, b"".join(entries))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("summary") / "1.0.0")


def open_one(root, **options):
    options = WindowOptions(time=TimeSpec(FRAMES, 2), image_size=(8, 8), **options)
    (member,) = open_members([DatasetChoice(root)], options, cameras=("image_0",))
    return member


@pytest.mark.parametrize(
    "total, wanted, expected", [(10, 4, [0, 2, 5, 7]), (3, 9, [0, 1, 2]), (0, 5, [])]
)
def test_a_sample_is_spread_evenly(total, wanted, expected):
    assert spread_evenly(total, wanted).tolist() == expected


def test_lengths_instructions_and_what_is_left_out(stored):
    splits, root = stored
    train = open_one(root, skip_empty_instructions=True).train
    found = summarise_split(train)
    assert (found["stored"], found["steps"], found["span"]) == (4, 62, FRAMES + 1)
    names = [f"{episode.name}#{episode.number}" for episode in splits["train"]]
    # The second one has exactly one window, and no instruction; the third is too short.
    assert found["left_out"] == [
        {"reason": "empty instruction", "episodes": 1, "names": [names[1]]},
        {"reason": f"fewer than {FRAMES} steps", "episodes": 1, "names": [names[2]]},
    ]
    assert (found["episodes"], found["windows"]) == (2, 13 - 8 + 29 - 8)
    lengths = found["lengths"]
    assert (lengths["minimum"], lengths["maximum"]) == (8, 30)
    assert (lengths["median"], lengths["mean"]) == (12.0, 15.5)
    edges = np.array(lengths["edges"])
    for kind, steps in (("used", (14, 30)), ("left_out", (10, 8))):
        counted = [sum(a <= n < b for n in steps) for a, b in itertools.pairwise(edges)]
        assert lengths[kind] == counted and sum(counted) == 2
    instructions = found["instructions"]
    assert (instructions["distinct"], instructions["empty"]) == (2, 0.25)
    assert instructions["frequent"] == [["open the drawer", 2], [" ", 1], ["close it", 1]]


def test_shares_and_histograms_of_every_dimension(stored):
    _, root = stored
    member = open_one(root)
    (report,) = summarise_members([member], windows=520)
    assert report["epochs"] == 520 / len(member.train) == 520 / (5 + 1 + 21)
    statistics = report["statistics"]
    assert statistics["sampled"] == {"train": 4, "val": 2} and statistics["rate"] == 5.0
    assert statistics["measured"].startswith("statistics: 4 episodes, 54 transitions in ")
    assert statistics["published"] is None  # of another dataset
    motions = [member.train.reader.motion(i) for i in range(4)]
    rows = {"actions": motions and np.concatenate([a for a, _ in motions])}
    rows["states"] = np.concatenate([s for _, s in motions]).astype(np.float64)
    yaw = rows["states"][:, 5]
    rows["states"][:, 5] = np.where(yaw < 0, yaw + 2 * np.pi, yaw)  # around pi
    kinds = {"actions": member.statistics.actions, "states": member.statistics.proprio}
    for kind, figures in kinds.items():
        assert statistics[kind]["count"] == len(rows[kind])
        for i, dimension in enumerate(statistics[kind]["dimensions"]):
            values = rows[kind][:, i]
            assert dimension["name"] == figures.spec.names[i]
            assert dimension["q99"] == figures.q99[i]
            low, high = (
                (0, 1) if dimension["kind"] == "gripper" else (figures.q01[i], figures.q99[i])
            )
            if dimension["kind"] == "angle" and kind == "states":
                # q01 and q99 may have been counted from the other side of the seam.
                values = values - 2 * np.pi * np.round((values - (low + high) / 2) / (2 * np.pi))
            gap = 1e-4 * (high - low)
            outside = np.mean((values < low - gap) | (values > high + gap))
            if (kind, dimension["kind"]) == ("actions", "gripper"):
                outside = 0  # binarised
            assert dimension["clipped"]["train"] == pytest.approx(outside)
            for histogram in (dimension["stored"], dimension["normalised"]):
                assert len(histogram["edges"]) <= BINS + 1
                for split in ("train", "val"):
                    total = sum(histogram["shares"][split]) + histogram["outside"][split]
                    assert total == pytest.approx(1)
            edges = np.array(dimension["stored"]["edges"])
            middle = (edges[3] + edges[4]) / 2
            place = np.searchsorted(edges, middle) - 1
            inside = np.mean((values >= edges[place]) & (values < edges[place + 1]))
            assert dimension["stored"]["shares"]["train"][place] == pytest.approx(inside, abs=0.02)


def test_only_some_episodes_are_read(stored, monkeypatch):
    _, root = stored
    member = open_one(root)
    read = []
    motion = type(member.train.reader).motion

    def counted(self, index, stride=1):
        read.append((self.split, index))
        return motion(self, index, stride)

    monkeypatch.setattr(type(member.train.reader), "motion", counted)
    (report,) = summarise_members([member], windows=1, sampled=2)
    assert report["statistics"]["sampled"] == {"train": 2, "val": 2}
    assert set(read) == {("train", 0), ("train", 2), ("val", 0), ("val", 1)}
    # The figures themselves are of all of them.
    assert report["statistics"]["episodes"] == 4
    assert report["statistics"]["actions"]["count"] == 54


def test_an_episode_without_a_step_is_counted_and_left_out(tmp_path):
    long = [rlds.StoredEpisode.random(seed, 12 + seed) for seed in range(3)]
    splits = {"train": [EmptyEpisode(), *long[:2]], "val": long[2:]}
    root = rlds.write_dataset(tmp_path / "toy", splits)
    (report,) = summarise_members([open_one(root)], windows=1)
    train = report["splits"]["train"]
    assert (train["stored"], train["episodes"], train["lengths"]["minimum"]) == (3, 2, 0)
    assert train["left_out"][0]["episodes"] == 1
    assert report["statistics"]["actions"]["count"] == 10 + 11
    assert report["statistics"]["sampled"]["train"] == 3


def test_published_figures_of_this_dataset_alone(stored, tmp_path):
    _, root = stored
    named = rlds.write_dataset(tmp_path / "bridge", write_episodes(root)[0], name="bridge_dataset")
    published = summarise_members([open_one(named)], windows=1)[0]["statistics"]["published"]
    assert published["datasets"][0] == "bridge_dataset" and len(published["quantiles"]) == 12
    options = WindowOptions(time=TimeSpec(5, 1), image_size=(8, 8), rate=2.5)
    members = open_members([DatasetChoice(named)], options, cameras=("image_0",))
    assert summarise_members(members, windows=1)[0]["statistics"]["published"] is None


def test_a_lower_rate_spans_more_steps(stored):
    _, root = stored
    options = WindowOptions(time=TimeSpec(5, 1), image_size=(8, 8), rate=2.5)
    (member,) = open_members([DatasetChoice(root)], options, cameras=("image_0",))
    found = summarise_split(member.train)
    assert (found["rate"], found["span"]) == (2.5, 10)
    (report,) = summarise_members([member], windows=1)
    assert report["statistics"]["rate"] == 2.5
