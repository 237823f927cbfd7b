"""Windows: their index, their alignment in time, and what they may not see."""

import json
import pickle

import cv2
import numpy as np
import pytest
from absl import logging
from safetensors.numpy import save_file

from roam_jax.contracts import TimeSpec
from roam_jax.data.actions import episode_actions
from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.embedded import EmbeddedSpec, ensure_embedded
from roam_jax.data.known import BRIDGE
from roam_jax.data.options import WindowOptions
from roam_jax.data.windows import WindowSource
from tests.data import rlds

TIME = TimeSpec(frames=9, t_current=2)
# Stored steps; after the first is dropped they hold 1, 0, 4 and 2 windows of 9 frames.
STEPS = (10, 9, 13, 11)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


def open_windows(
    root, *, time=TIME, image_size=(8, 8), cameras=("image_0",), statistics=None, **options
):
    reader = EpisodeReader(root, "train", cameras=cameras)
    options = WindowOptions(time=time, image_size=image_size, **options)
    statistics = statistics or compute_statistics(
        reader, stride=options.stride(reader.declaration.rate)
    )
    return WindowSource(reader, options, statistics=statistics)


@pytest.fixture
def toy(tmp_path):
    episodes = [rlds.StoredEpisode.random(i, steps) for i, steps in enumerate(STEPS)]
    return rlds.write_dataset(tmp_path / "toy", {"train": episodes})


def test_every_start_of_every_long_enough_episode(toy):
    source = open_windows(toy)
    expected = [(0, 0), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1)]
    windows = [source[i] for i in range(len(source))]
    assert [(int(w["episode"]), int(w["start"])) for w in windows] == expected
    assert [source.window_index(*pair) for pair in expected] == list(range(7))
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            source[outside]
    with pytest.raises(IndexError, match=r"start 4 in episode 2 .* of 4 windows"):
        source.window_index(2, 4)
    with pytest.raises(IndexError, match="of 0 windows"):
        source.window_index(1)


@pytest.mark.parametrize("t_current", [1, 2])
def test_a_window_is_aligned_with_the_stored_steps(toy, t_current):
    time = TimeSpec(frames=9, t_current=t_current)
    source = open_windows(toy, time=time)
    stored = rlds.StoredEpisode.random(2, 13)
    window = source[source.window_index(2, 3)]
    # Kept step 3 is stored step 4.
    np.testing.assert_array_equal(window["frames"], stored.frames[4:13])
    np.testing.assert_array_equal(window["text"], stored.embedding[None])
    actions = episode_actions(BRIDGE, stored.state, stored.action)
    scale = source.statistics.actions.normalise
    past = 4 * t_current - 4
    assert window["past_actions"].shape == (past, 7)
    np.testing.assert_array_equal(window["past_actions"], scale(actions.inputs[3 : 3 + past]))
    np.testing.assert_array_equal(window["action_chunk"], scale(actions.targets[3 + past : 11]))
    # Action i is the transition from frame i to frame i + 1.
    chunk = source.statistics.actions.unnormalise(window["action_chunk"])
    clipped = np.abs(window["action_chunk"][:, :3]) >= 1
    reached = stored.state[5 + past : 13, :3] - stored.state[4 + past : 12, :3]
    np.testing.assert_allclose(chunk[:, :3][~clipped], reached[~clipped], atol=1e-5)


@pytest.mark.parametrize("t_current", [1, 2, 3])
def test_states_and_rewards_lie_at_latent_frames(tmp_path, t_current):
    """Step by step from the stored numbers: every fourth state, rewards of what is covered."""
    stored = rlds.StoredEpisode.random(0, 17)
    root = rlds.write_dataset(tmp_path / "toy", {"train": [stored]})
    window = open_windows(root, time=TimeSpec(frames=13, t_current=t_current))[2]
    found = {
        name: np.concatenate([window[f"observed_{name}"], window[f"future_{name}"]])
        for name in ("proprio", "reward")
    }
    assert len(window["observed_proprio"]) == len(window["observed_reward"]) == t_current
    # Kept step 2, the window's frame 0, is stored step 3; all kept steps have a say in the scale.
    low, high = np.quantile(stored.state[1:].astype(np.float64), (0.01, 0.99), axis=0)
    for latent in range(4):
        state = stored.state[3 + 4 * latent].astype(np.float64)
        expected = np.clip(2 * (state - low) / (high - low) - 1, -1, 1)
        expected[6] = np.clip(state[6], 0, 1)
        np.testing.assert_allclose(found["proprio"][latent], expected, atol=1e-5)
        covered = range(4 * latent - 3, 4 * latent + 1) if latent else (0,)
        reward = sum(float(stored.reward[3 + frame]) for frame in covered)
        np.testing.assert_allclose(found["reward"][latent], [reward], atol=1e-5)


def test_batch_contract(toy):
    window = open_windows(toy)[0]
    found = {name: (array.shape, array.dtype) for name, array in window.items()}
    assert found == {
        "frames": ((9, 8, 8, 3), np.uint8),
        "text": ((1, 8), np.float32),
        "past_actions": ((4, 7), np.float32),
        "action_chunk": ((4, 7), np.float32),
        "observed_proprio": ((2, 7), np.float32),
        "future_proprio": ((1, 7), np.float32),
        "observed_reward": ((2, 1), np.float32),
        "future_reward": ((1, 1), np.float32),
        "dataset": ((), np.int32),
        "episode": ((), np.int32),
        "start": ((), np.int32),
    }
    assert set(np.unique(window["action_chunk"][:, 6])) <= {0, 1}
    assert set(np.unique(window["past_actions"][:, 6])) <= {0, 0.5, 1}


def test_inputs_see_nothing_of_the_future(tmp_path):
    """Every later frame, state and command changed: inputs stay bitwise equal, targets do not."""
    stored, other = rlds.StoredEpisode.random(0, 12), rlds.StoredEpisode.random(1, 12)
    root = rlds.write_dataset(tmp_path / "before", {"train": [stored]})
    before = open_windows(root)
    start, observed = 1, TIME.observed_frames
    # The last observed frame is kept step start + observed - 1, stored one step later.
    later = slice(start + observed + 1, None)
    for track in ("frames", "state", "action", "reward"):
        getattr(stored, track)[later] = getattr(other, track)[later]
    # The command given at the last observed frame starts the first predicted action.
    stored.action[start + observed] = other.action[start + observed]
    root = rlds.write_dataset(tmp_path / "after", {"train": [stored]})
    after = open_windows(root, statistics=before.statistics)
    one, two = before[start], after[start]
    np.testing.assert_array_equal(one["frames"][:observed], two["frames"][:observed])
    for name in ("past_actions", "text", "observed_proprio", "observed_reward"):
        np.testing.assert_array_equal(one[name], two[name])
    assert (one["frames"][observed:] != two["frames"][observed:]).any()
    for name in ("action_chunk", "future_proprio", "future_reward"):
        assert (one[name] != two[name]).any()


def test_short_episodes_are_counted_and_named(toy, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    source = open_windows(toy)
    assert source.left_out == (("/recordings/1.npy#1", "fewer than 9 steps"),)
    assert len(said) == 1 and "left out 1 of 4 episodes, fewer than 9 steps" in said[0]
    assert "/recordings/1.npy#1" in said[0]
    described = json.loads(json.dumps(source.describe()))
    assert (described["episodes"], described["windows"], described["left_out"]) == (
        3,
        7,
        {"fewer than 9 steps": 1},
    )


def test_a_split_with_no_window_left(toy):
    with pytest.raises(
        ValueError,
        match=r"no window left in split 'train': windows span 13 steps after the first 1",
    ):
        open_windows(toy, time=TimeSpec(frames=13, t_current=2))


@pytest.mark.parametrize("size", [4, 16])
def test_frames_are_resized(toy, size):
    stored = rlds.StoredEpisode.random(0, 10).frames[1:]
    frames = open_windows(toy, image_size=(size, size))[0]["frames"]
    assert frames.shape == (9, size, size, 3)
    if size == 4:
        expected = stored.reshape(9, 4, 2, 4, 2, 3).mean((2, 4))
        np.testing.assert_allclose(frames, expected, atol=0.51)
    else:
        linear = [cv2.resize(f, (16, 16), interpolation=cv2.INTER_LINEAR) for f in stored]
        np.testing.assert_array_equal(frames, linear)


def test_real_episodes_give_one_window_each(bridge_root):
    source = open_windows(bridge_root, image_size=(64, 64))
    assert len(source) == 16 and source.left_out == ()
    window = source[5]
    np.testing.assert_array_equal(
        window["frames"], source.reader[5].frames(range(1, 10), camera="image_0")
    )
    assert window["text"].shape == (1, 512) and np.abs(window["text"]).max() > 0
    # Cut episodes: no step carries the reward of the last one.
    assert not window["observed_reward"].any() and not window["future_reward"].any()


def test_states_of_real_or_embedded_episodes_equal_numpy(robot_root):
    source = open_windows(robot_root, image_size=(64, 64))
    states = [source.reader[i].state[1:] for i in range(len(source.reader))]
    low, high = np.quantile(np.concatenate(states).astype(np.float64), (0.01, 0.99), axis=0)
    for index in range(0, len(source), max(1, len(source) // 8)):
        window = source[index]
        start = int(window["start"])
        state = states[int(window["episode"])][[start, start + 4, start + 8]]
        expected = np.clip(2 * (state - low) / (high - low) - 1, -1, 1)
        expected[:, 6] = np.clip(state[:, 6], 0, 1)
        proprio = np.concatenate([window["observed_proprio"], window["future_proprio"]])
        np.testing.assert_allclose(proprio, expected, atol=2e-5)


def test_an_embedded_success_is_rewarded_with_the_last_frame(tmp_path):
    spec = EmbeddedSpec(seed=5, train=1, val=1, steps=(16, 20), image_size=16)
    source = open_windows(ensure_embedded(variant=spec, directory=tmp_path), image_size=(16, 16))
    last, before = source[len(source) - 1], source[len(source) - 2]
    np.testing.assert_array_equal(last["observed_reward"], [[0], [0]])
    np.testing.assert_array_equal(last["future_reward"], [[1]])
    np.testing.assert_array_equal(before["future_reward"], [[0]])


def test_text_from_a_file(toy, tmp_path):
    path = tmp_path / "text.safetensors"
    embeddings = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float16)
    # "do thing 1" has no window, so nobody needs its text.
    prompts = ["do thing 3", "do thing 0", "do thing 2"]
    save_file({"embeddings": embeddings}, path, metadata={"prompts": json.dumps(prompts)})
    source = open_windows(toy, text=path)
    np.testing.assert_array_equal(source[0]["text"], embeddings[1].astype(np.float32))
    np.testing.assert_array_equal(source[6]["text"], embeddings[0].astype(np.float32))
    save_file({"embeddings": embeddings[:1]}, path, metadata={"prompts": json.dumps(prompts[:1])})
    with pytest.raises(ValueError, match=r"2 instructions, such as \['do thing 0', 'do thing 2'\]"):
        open_windows(toy, text=path)


def test_a_dataset_without_embeddings(tmp_path):
    features = rlds.bridge_features(8, language_embedding=None)
    root = rlds.write_dataset(
        tmp_path / "toy", {"train": [rlds.StoredEpisode.random(0, 10)]}, features
    )
    with pytest.raises(ValueError, match="stores none; expected a file"):
        open_windows(root)


def test_further_cameras_and_a_rectangular_size(tmp_path):
    stored = rlds.StoredEpisode.random(0, 11)
    root = rlds.write_dataset(tmp_path / "toy", {"train": [stored]})
    window = open_windows(root, cameras=("image_1", "image_0"), image_size=(8, 16))[1]
    assert window["frames"].shape == (9, 8, 16, 3) and not window["frames"].any()  # black
    assert window["camera_frames"].shape == (1, 9, 8, 16, 3)
    wide = [cv2.resize(f, (16, 8), interpolation=cv2.INTER_LINEAR) for f in stored.frames[2:]]
    np.testing.assert_array_equal(window["camera_frames"][0], wide)


def test_a_lower_rate_skips_steps_and_adds_up_what_lies_between(tmp_path):
    """Every second step, from the stored numbers."""
    stored = rlds.StoredEpisode.random(3, 20)
    root = rlds.write_dataset(tmp_path / "toy", {"train": [stored]})
    source = open_windows(root, rate=2.5)
    assert len(source) == 19 - 17 + 1 and source.describe()["rate"] == 2.5
    window, steps = source[2], 3 + 2 * np.arange(9)
    np.testing.assert_array_equal(window["frames"], stored.frames[steps])
    moved = np.diff(stored.state[steps, :3], axis=0)
    low, high = (
        np.array(q[:3]) for q in (source.statistics.actions.q01, source.statistics.actions.q99)
    )
    expected = np.clip(2 * (moved - low) / (high - low) - 1, -1, 1)
    actions = np.concatenate([window["past_actions"], window["action_chunk"]])
    np.testing.assert_allclose(actions[:, :3], expected, atol=1e-5)
    # Statistics are over what is predicted: changes over two steps from every kept one.
    all_moves = stored.state[3:, :3] - stored.state[1:-2, :3]
    np.testing.assert_allclose(low, np.quantile(all_moves, 0.01, axis=0), rtol=1e-5)
    # Latent frame 1 covers frames 1..4, hence the eight steps after frame 0.
    reward = np.concatenate([window["observed_reward"], window["future_reward"]])[:, 0]
    sums = [stored.reward[3], stored.reward[4:12].sum(), stored.reward[12:20].sum()]
    np.testing.assert_allclose(reward, sums, atol=1e-5)
    states = np.concatenate([window["observed_proprio"], window["future_proprio"]])
    scaled = source.statistics.proprio.normalise(stored.state[steps[::4]])
    np.testing.assert_array_equal(states, scaled)


@pytest.mark.parametrize("rate", [3.0, 10.0, -1.0])
def test_a_rate_that_the_data_does_not_have(toy, rate):
    with pytest.raises(ValueError, match=r"data.rate = .* 5 steps a second; expected .*5, 2.5, "):
        open_windows(toy, rate=rate)


def test_the_last_frame_as_goal(toy):
    stored = rlds.StoredEpisode.random(2, 13)
    source = open_windows(toy, goal="last")
    for start in range(4):
        goal = source[source.window_index(2, start)]["goal_frame"]
        np.testing.assert_array_equal(goal, stored.frames[-1:])
    assert "goal_frame" not in open_windows(toy)[0]


def test_a_random_goal_lies_after_what_is_observed(toy):
    stored = rlds.StoredEpisode.random(2, 13)
    source = open_windows(toy, goal="uniform")
    index, found = source.window_index(2, 1), set()
    for seed in range(200):
        goal = source.draw(index, np.random.default_rng(seed))["goal_frame"][0]
        found |= {step for step, frame in enumerate(stored.frames) if np.array_equal(frame, goal)}
    # Kept step 1 is stored step 2; five frames are observed, up to stored step 6.
    assert found == set(range(7, 13))
    np.testing.assert_array_equal(source[index]["goal_frame"], source[index]["goal_frame"])
    with pytest.raises(ValueError, match=r"data.goal = 'first': expected one of none, last"):
        open_windows(toy, goal="first")


def test_episodes_without_an_instruction_can_be_left_out(tmp_path):
    episodes = [rlds.StoredEpisode.random(i, 10) for i in range(4)]
    for episode, text in zip(episodes, ("", "push", " ", "pull"), strict=True):
        episode.instruction = text
    root = rlds.write_dataset(
        tmp_path / "toy", {"train": [*episodes, rlds.StoredEpisode.random(5, 4)]}
    )
    assert len(open_windows(root)) == 4
    source = open_windows(root, skip_empty_instructions=True)
    assert [int(source[i]["episode"]) for i in range(len(source))] == [1, 3]
    reasons = {name: reason for name, reason in source.left_out}
    assert reasons == {
        "/recordings/0.npy#0": "empty instruction",
        "/recordings/2.npy#2": "empty instruction",
        "/recordings/5.npy#5": "fewer than 9 steps",
    }


def test_a_source_travels_to_another_process(toy):
    source = open_windows(toy, cameras=("image_0", "image_1"), goal="uniform")
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    for index in (0, 4):
        for name, array in source[index].items():
            np.testing.assert_array_equal(copy[index][name], array)


def test_goals_and_cameras_leave_the_inputs_blind(tmp_path):
    """Later frames of every camera changed: what is observed of them stays bitwise equal."""
    stored, other = rlds.StoredEpisode.random(0, 12), rlds.StoredEpisode.random(1, 12)
    cameras = ("image_1", "image_0")  # the one that changes is the second
    before = open_windows(
        rlds.write_dataset(tmp_path / "before", {"train": [stored]}), cameras=cameras
    )
    later = slice(1 + TIME.observed_frames + 1, None)
    stored.frames[later] = other.frames[later]
    root = rlds.write_dataset(tmp_path / "after", {"train": [stored]})
    after = open_windows(root, cameras=cameras, statistics=before.statistics)
    one, two = before[1]["camera_frames"][0], after[1]["camera_frames"][0]
    np.testing.assert_array_equal(one[: TIME.observed_frames], two[: TIME.observed_frames])
    assert (one != two).any()
