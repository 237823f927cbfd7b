"""Demonstrations: what tfds and the reader get back is what was simulated; bad caches are named."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from roam_jax.data import demonstrations
from roam_jax.data.demonstration_records import (
    GENERATOR_VERSION,
    demonstration_features,
    parse_demonstration,
    serialize_demonstration,
)
from roam_jax.data.demonstrations import (
    DemonstrationSpec,
    ensure_demonstrations,
    read_demonstrations,
    record_episodes,
)
from roam_jax.data.records import index_shard, read_record
from roam_jax.morphology import WorldSpec
from roam_jax.sim.native import NativeWorlds, Outcome
from roam_jax.sim.worlds import make_world

SPEC = DemonstrationSpec("push", "arm2", episodes=2, seed=3, noise=0.2)
OPTIONS = {"episodes": 2, "seed": 3, "noise": 0.2}
SHARD = "demonstrations-train.tfrecord-00000-of-00001"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return ensure_demonstrations(
        "push", "arm2", directory=tmp_path_factory.mktemp("demonstrations"), **OPTIONS
    )


@pytest.fixture
def copied(root, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(root, tmp_path / "copied"))


def originals() -> list:
    """The train episodes once more, straight from the simulation."""
    return record_episodes(make_world("push", "arm2"), SPEC, 2, seed=[3, 0, 0, 0])


def edit(root: pathlib.Path, change) -> None:
    """Rewrites the manifest, changed in place by a function."""
    path = root / "demonstrations.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_tfds_reads_back_what_was_simulated(root):
    builder = tfds.builder_from_directory(root)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 2,
        "val": 8,
    }
    records = index_shard(root / SHARD)
    world = make_world("push", "arm2")
    for number, (record, episode) in enumerate(zip(records, originals(), strict=True)):
        stored = builder.info.features.deserialize_example_np(read_record(record))
        steps = list(stored["steps"])
        assert len(steps) == world.spec.steps
        for name, values in episode.observations.items():
            found = [step["observation"][name] for step in steps]
            np.testing.assert_array_equal(found, values, err_msg=name)
        for name, expected in (
            ("action", episode.actions),
            ("reward", episode.rewards),
            ("discount", np.ones(80)),
            ("is_first", np.arange(80) == 0),
            ("is_last", np.arange(80) == 79),
            ("is_terminal", np.zeros(80)),
        ):
            np.testing.assert_array_equal([s[name] for s in steps], expected, err_msg=name)
        metadata = stored["episode_metadata"]
        assert metadata["success"] and metadata["generator"] == GENERATOR_VERSION
        assert metadata["episode_id"] == number and list(metadata["seed"]) == [3, 0, 0, 0]
        assert WorldSpec.from_json(metadata["world_spec"].decode()) == world.spec


def test_the_reader_gives_all_steps_end_to_end(root):
    found = read_demonstrations(root, "train")
    assert found.spec == make_world("push", "arm2").spec
    for name in ("joints", "tip", "prop", "goal"):
        expected = np.concatenate([episode.observations[name] for episode in originals()])
        np.testing.assert_array_equal(found.observations[name], expected, err_msg=name)
        assert found.observations[name].dtype == expected.dtype
    expected = np.concatenate([episode.actions for episode in originals()])
    np.testing.assert_array_equal(found.actions, expected)
    np.testing.assert_array_equal(found.episode, np.repeat([0, 1], 80))
    np.testing.assert_array_equal(found.step, np.tile(np.arange(80), 2))
    assert found.rewards.shape == (160,) and found.dropped == {"diverged": 0, "unsuccessful": 0}
    assert found.fingerprint != read_demonstrations(root, "val").fingerprint
    assert found.fingerprint == read_demonstrations(root, "train").fingerprint


def test_stored_actions_are_clean_and_executed_ones_noisy():
    world = make_world("push", "arm2")
    for noise in (0.0, 0.2):
        spec = dataclasses.replace(SPEC, noise=noise)
        episode = record_episodes(world, spec, 1, seed=[0, 0, 0, 0])[0]
        joints = episode.observations["joints"]
        commands = joints[..., 0] + joints[..., 2]
        clean = world.commanded(commands[:-1], episode.actions[:-1])
        off = np.abs(commands[1:] - clean).max(-1)
        assert off[60:].max() < 1e-5, "the last quarter is undisturbed"
        assert (off[:59].min() > 1e-4) if noise else (off.max() < 1e-5)


def test_the_same_spec_gives_the_same_bytes_and_a_folder_that_is_there_stays(root, tmp_path):
    again = ensure_demonstrations("push", "arm2", directory=tmp_path, **OPTIONS)
    assert again.parent.name.startswith(f"push-arm2-g{GENERATOR_VERSION}-")
    for path in root.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    (again / "mine").touch()
    assert ensure_demonstrations("push", "arm2", directory=tmp_path, **OPTIONS) == again
    assert (again / "mine").exists()
    assert len(list(tmp_path.iterdir())) == 1, "no temporary folder is left"
    assert DemonstrationSpec("push", "arm2", 2, seed=4).digest() not in again.parent.name


def test_another_generator_version_says_how_to_make_it_anew(copied):
    edit(copied, lambda manifest: manifest.update(generator=GENERATOR_VERSION + 4))
    with pytest.raises(
        ValueError,
        match=rf"generator version {GENERATOR_VERSION + 4}, expected {GENERATOR_VERSION}; make "
        r"them anew with ensure_demonstrations\('push', 'arm2', episodes=2, seed=3, noise=0.2, "
        r"pixels=0\)",
    ):
        read_demonstrations(copied, "train")


def test_another_world_is_told_by_its_differences(copied):
    edit(copied, lambda manifest: manifest["world_spec"].update(period=0.2))
    with pytest.raises(ValueError, match="not the present one: seconds between actions: here 0.2"):
        read_demonstrations(copied, "train")
    edit(copied, lambda manifest: manifest["world_spec"].update(period=0.1, steps=81))
    with pytest.raises(ValueError, match="ranges, lengths, scales or steps; make them anew"):
        read_demonstrations(copied, "train")


def test_a_damaged_record_is_named(copied):
    shard = copied / SHARD
    second = index_shard(shard)[1]
    content = bytearray(shard.read_bytes())
    content[second.payload_offset + 100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{SHARD}: damaged record at byte {second.offset}"):
        read_demonstrations(copied, "train")
    shard.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=rf"{SHARD}: truncated record at byte {second.offset}"):
        read_demonstrations(copied, "train")


def test_a_record_of_other_content_is_named(copied):
    edit(copied, lambda manifest: manifest["demonstrations"].update(pixels=24))
    with pytest.raises(ValueError, match="record at byte 0: no feature 'steps/observation/pixels'"):
        read_demonstrations(copied, "train")


def test_frames_come_back_whole():
    world = make_world("reach", "arm2")
    spec = DemonstrationSpec("reach", "arm2", 1, pixels=16)
    episode = record_episodes(world, spec, 1, seed=[0, 0, 0, 0])[0]
    assert episode.observations["pixels"].std() > 5
    payload = serialize_demonstration(episode, spec=world.spec, number=0)
    again = parse_demonstration(payload, world.spec, pixels=16)
    stored = demonstration_features(world.spec, pixels=16).deserialize_example_np(payload)
    by_tfds = [step["observation"]["pixels"] for step in stored["steps"]]
    for frames in (again.observations["pixels"], by_tfds):
        np.testing.assert_array_equal(frames, episode.observations["pixels"])
    with pytest.raises(ValueError, match=r"a frame of shape \(16, 16, 3\), expected shape \(24, "):
        parse_demonstration(payload, world.spec, pixels=24)


def test_missing_and_damaged_manifests_are_named(copied, tmp_path):
    with pytest.raises(FileNotFoundError, match="demonstrations.json: not found; expected the"):
        read_demonstrations(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no split 'test' .*expected one of \['train', 'val'\]"):
        read_demonstrations(copied, "test")
    (copied / "demonstrations.json").write_text("{")
    with pytest.raises(ValueError, match="damaged manifest of demonstrations"):
        read_demonstrations(copied, "train")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"episodes": 0}, "episodes of demonstrations is 0, expected at least 1"),
        ({"noise": -0.1}, "noise of demonstrations is -0.1, expected at least 0"),
        ({"noise": float("nan")}, "noise of demonstrations is nan, expected at least 0"),
        ({"pixels": -1}, "pixels of demonstrations is -1, expected at least 0"),
    ],
)
def test_bad_options_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ensure_demonstrations("push", "arm2", directory=tmp_path, **{"episodes": 2, **options})


def test_unknown_worlds_are_named(tmp_path):
    with pytest.raises(ValueError, match="'arm2'"):
        ensure_demonstrations("push", "arm22", episodes=1, directory=tmp_path)


class Failing(NativeWorlds):
    """Worlds whose first episode is lost: it diverges in those made first, fails in the second."""

    made = 0
    always = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        type(self).made += 1
        self.number = type(self).made

    def step(self, actions):
        outcome = super().step(actions)
        diverged, success = outcome.diverged.copy(), outcome.success.copy()
        diverged[0] |= self.number == 1
        success[0] &= self.number > 2
        success &= not self.always
        return Outcome(outcome.reward, success, diverged)


def test_lost_episodes_are_counted_and_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstrations, "NativeWorlds", Failing)
    monkeypatch.setattr(Failing, "made", 0)
    root = ensure_demonstrations("reach", "arm2", episodes=2, directory=tmp_path)
    found = read_demonstrations(root, "train")
    assert found.dropped == {"diverged": 1, "unsuccessful": 1}
    assert len(np.unique(found.episode)) == 2


def test_an_expert_that_fails_too_often_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstrations, "NativeWorlds", Failing)
    monkeypatch.setattr(Failing, "made", 0)
    monkeypatch.setattr(Failing, "always", True)
    monkeypatch.setattr(demonstrations, "ROUNDS", 2)
    with pytest.raises(RuntimeError, match="reach/arm2: 1 episodes of split 'train' are still"):
        ensure_demonstrations("reach", "arm2", episodes=1, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_page_on_demonstrations_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path))
    page = pathlib.Path(__file__).parents[2] / "docs" / "demonstrations.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.startswith("reach/arm2 (160, 2, 3) (160, 2)")
