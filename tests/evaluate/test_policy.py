"""A policy built from recorded episodes by hand predicts what an evaluation of them predicts."""

import dataclasses
import functools
import json
import shutil

import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import save_file

from roam_jax.data.actions import gripper_inputs
from roam_jax.data.embedded import language_embedding
from roam_jax.evaluate.observation import Observation
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.tasks.build import build
from tests.evaluate.conftest import make_config, make_params, write_run
from tests.evaluate.test_run import with_overrides

ROUNDS = 2


@pytest.fixture(scope="module")
def policy(finished):
    return Policy.load(finished)


@pytest.fixture(scope="module")
def deployed(experiment, params):
    """Window of the validation split -> what an evaluation predicts, in physical units."""
    predictor = GraftPredictor(experiment.model)
    source = experiment.splits["val"]

    @functools.cache
    def predict(index):
        window = {name: np.asarray(value)[None] for name, value in source[index].items()}
        windows = predictor.encode(params, window)
        found = predictor.deploy(params, windows, np.array([index], np.int32), rounds=ROUNDS)
        return source.statistics.actions.unnormalise(np.asarray(found["actions"]))[0]

    return predict


def observe(source, index, *, size=None):
    """The observed part of a window from the stored episode alone; by hand, by Bridge's rules."""
    window = source[index]
    number, start = int(window["episode"]), int(window["start"])
    episode = source.reader[number]
    first = source.reader.declaration.skip_first + start
    frames = episode.frames(range(first, first + 5), camera="image_0")
    state = episode.state
    moved = state[first + 1 : first + 5, :6].astype(np.float64) - state[first : first + 4, :6]
    moved[:, 3:] = (moved[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    gripper = gripper_inputs(episode.command[source.reader.declaration.skip_first :, 6])
    past = np.c_[moved, gripper[start : start + 4]].astype(np.float32)
    proprio = state[[first, first + 4]]
    return Observation(frames, past, proprio=proprio), episode.language_embedding


def test_actions_are_those_of_the_evaluation(policy, deployed, experiment):
    source = experiment.splits["val"]
    for index in (0, 3):
        observation, text = observe(source, index)
        found = policy(observation, instruction=text, seed=index)
        assert found.shape == (policy.time.chunk, 7) and found.dtype == np.float32
        # The first rounding of an angle difference may differ by a bit of float32.
        np.testing.assert_allclose(found, deployed(index), rtol=1e-4, atol=2e-5)
        assert np.abs(found - deployed(3 - index)).max() > 1e-3
    assert policy.actions.names[:3] == ("x", "y", "z") and policy.rate == 5.0
    assert policy.step == 6 and policy.rounds == ROUNDS


def test_many_worlds_at_once(policy, deployed, experiment):
    source = experiment.splits["val"]
    worlds = [observe(source, index) for index in range(3)]
    many = Observation(
        np.stack([o.frames for o, _ in worlds]), np.stack([o.past_actions for o, _ in worlds])
    )
    found = policy(many, instruction=[text for _, text in worlds])
    assert found.shape == (3, policy.time.chunk, 7)
    for index in range(3):
        np.testing.assert_allclose(found[index], deployed(index), rtol=1e-4, atol=2e-5)
    seeds = policy(many, instruction=worlds[0][1], seed=[7, 0, 0])
    assert np.abs(seeds[0] - found[0]).max() > 1e-4
    np.testing.assert_allclose(
        seeds[0], policy(worlds[0][0], instruction=worlds[0][1], seed=7), 1e-4
    )


def test_other_values_and_sizes_of_frames_compile_nothing(policy, deployed, experiment):
    observation, text = observe(experiment.splits["val"], 0)
    policy(observation, instruction=text)
    sizes = policy._encode._cache_size(), policy._act._cache_size()
    policy(dataclasses.replace(observation, proprio=None), instruction=-text, seed=4)
    larger = observation.frames.repeat(2, axis=1).repeat(2, axis=2)
    found = policy(dataclasses.replace(observation, frames=larger), instruction=text)
    assert (policy._encode._cache_size(), policy._act._cache_size()) == sizes
    # Frames are resized as the data is: averaging areas undoes the repetition.
    np.testing.assert_allclose(found, deployed(0), rtol=1e-4, atol=2e-5)


def edited(observation, **changes):
    return dataclasses.replace(observation, **changes)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda o: edited(o, frames=o.frames[:4]),
            r"observation.frames has shape \(4, 16, 16, 3\) and dtype uint8 .*expected \(5, height",
        ),
        (lambda o: edited(o, frames=o.frames / 255.0), "observation.frames has .* float64 .*uint8"),
        (lambda o: edited(o, frames=o.frames[0]), r"observation.frames has shape .*expected \(5,"),
        (
            lambda o: edited(o, past_actions=o.past_actions[:, :6]),
            r"observation.past_actions has shape \(4, 6\) .*expected \(4, 7\) .*: x, y, z, roll",
        ),
        (
            lambda o: edited(o, past_actions=None),
            "observation.past_actions is missing: the policy reads 4 rows of x, y, z",
        ),
        (
            lambda o: edited(o, past_actions=o.past_actions * np.nan),
            "observation.past_actions: NaN or infinite numbers in x, y",
        ),
        (
            lambda o: edited(o, past_actions=o.past_actions + np.eye(7)[6] * 3),
            r"observation.past_actions: a gripper of (3.5|4): expected 1",
        ),
        (
            lambda o: edited(o, past_actions=o.past_actions * 0 + 0.3 * np.eye(7)[6]),
            "observation.past_actions: a gripper of 0.3: expected 1",
        ),
        (lambda o: edited(o, frames=o.frames[:, :0]), r"has shape \(5, 0, 16, 3\) .*expected \(5,"),
        (
            lambda o: edited(o, frames=o.frames[None][:0]),
            r"worlds: 0\), expected \(5, height, width, 3\) of uint8 for each of 1",
        ),
        (
            lambda o: edited(o, proprio=o.proprio[:1]),
            r"observation.proprio has shape \(1, 7\) .*expected \(2, 7\)",
        ),
    ],
)
def test_observations_that_do_not_fit_are_refused(policy, experiment, change, message):
    observation, text = observe(experiment.splits["val"], 0)
    with pytest.raises(ValueError, match=message):
        policy(change(observation), instruction=text)


def test_instructions_that_do_not_fit_are_refused(policy, experiment):
    observation, text = observe(experiment.splits["val"], 0)
    for instruction, message in (
        ("pick up the cup", "instruction 'pick up the cup': the run reads the sentence embeddings"),
        (text[:100], r"an embedding of shape \(1, 100\), expected \(1, 512\)"),
        ([text, text], "2 instructions for 1 worlds: expected one each"),
        (text * np.nan, "instruction: an embedding with NaN .* expected finite ones"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(observation, instruction=instruction)
    with pytest.raises(ValueError, match="2 seeds for 1 worlds"):
        policy(observation, instruction=text, seed=[0, 1])
    with pytest.raises(ValueError, match=f"seed = {2**40}: expected integers of 32 bits"):
        policy(observation, instruction=text, seed=2**40)


def test_values_of_other_types_are_refused(policy, experiment, monkeypatch):
    """As a user meets them: only tests check types as they run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    observation, text = observe(experiment.splits["val"], 0)
    none = edited(observation, frames=None)
    for given, arguments, message in (
        (none, {}, "observation.frames is missing: the policy reads pictures of the first camera"),
        (observation, {"seed": 1.5}, "seed = 1.5: expected integers of 32 bits"),
        (
            observation,
            {"instruction": None},
            r"instruction: none; expected a text, an embedding of shape \(1, 512\), or a list",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            policy(given, **{"instruction": text, **arguments})


@pytest.fixture
def changed(finished, tmp_path):
    """A copy of the workdir whose config has other values: a function of dotted keys."""

    def change(**leaves):
        path = shutil.copytree(finished, tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        saved = json.loads((path / "config.json").read_text())
        for key, value in leaves.items():
            section, leaf = key.split("__")
            saved["config"][section][leaf] = value
        (path / "config.json").write_text(json.dumps(saved))
        return path

    return change


def test_texts_of_embedded_data_are_embedded_by_its_rule(changed):
    policy = Policy.load(changed(data__root="embedded"))
    found = policy._texts(["push the red cube", "reach"], 2)
    expected = [language_embedding("push the red cube"), language_embedding("reach")]
    np.testing.assert_array_equal(found, np.stack(expected)[:, None])


def test_texts_of_a_file_are_looked_up(changed, experiment, tmp_path):
    embeddings = np.random.default_rng(3).standard_normal((2, 1, 512)).astype(np.float16)
    file = tmp_path / "text.safetensors"
    save_file({"embeddings": embeddings}, file, {"prompts": json.dumps(["open", "close"])})
    policy = Policy.load(changed(), overrides=with_overrides(f"data.text={file}"))
    np.testing.assert_array_equal(policy._texts("close", 1), embeddings[1:].astype(np.float32))
    observation, _ = observe(experiment.splits["val"], 0)
    with pytest.raises(ValueError, match="no embedding of 1 instructions, such as .'shut'"):
        policy(observation, instruction="shut")
    # Not asked for: the file of the run is another one.
    with pytest.raises(ValueError, match="text at data.text = .* has fingerprint .*None"):
        Policy.load(changed(data__text=str(file)))


def test_runs_without_a_policy_are_refused_by_name(changed):
    for key, value, message in (
        ("train__task", "vae", "has no policy: train.task = 'vae'; expected .* 'graft'"),
        ("train__task", "video", "has no policy: train.task = 'video'"),
        ("train__task", "clone", "'clone', expected 'graft'; .*load_policy loads policies of both"),
        ("canvas__action_weight", 0.0, "has no policy: canvas.action_weight = 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy.load(changed(**{key: value}))


def test_arguments_that_do_not_fit_are_refused(finished):
    for arguments, message in (
        ({"rounds": 3}, "rounds = 3: trained with loop.rounds = 2"),
        (
            {"action_steps": 4},
            "action_steps = 4: the decoder 'tokens' predicts its actions at",
        ),
        ({"robot": "arm"}, "robot: 'arm' is none of the run's; expected .*it has one dataset"),
    ):
        with pytest.raises(ValueError, match=message):
            Policy.load(finished, **arguments)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 9"):
        Policy.load(finished, step=9)


@pytest.fixture(scope="module")
def full(weights, toy_root, tmp_path_factory):
    """(experiment, params, workdir) of a run that reads all there is and denoises its actions."""
    config = make_config(weights, toy_root)
    config.data.cameras, config.data.goal = ("image_0", "image_1"), "last"
    config.canvas.camera_weight, config.decoder.kind = 0.5, "tokens_diffused"
    config.canvas.proprio = config.canvas.reward = True
    config.loop.rounds, config.eval.action_steps = 1, 3
    experiment = build(config)
    params = make_params(experiment)
    path = tmp_path_factory.mktemp("full") / "run"
    write_run(path, experiment, params, scales={1: 1.0})
    return experiment, params, path


def test_a_policy_that_reads_everything_and_denoises_its_actions(full):
    experiment, params, path = full
    source, seen = experiment.splits["val"], experiment.time.observed_frames
    window = {name: np.asarray(value)[None] for name, value in source[1].items()}
    observation, text = observe(source, 1)
    number, start = int(window["episode"][0]), int(window["start"][0])
    episode, first = source.reader[number], 1 + start
    assert source.reader.declaration.skip_first == 1
    everything = dataclasses.replace(
        observation,
        reward=np.array([episode.reward[first], episode.reward[first + 1 : first + 5].sum()]),
        camera_frames={"image_1": episode.frames(range(first, first + 5), camera="image_1")},
        goal_frame=episode.frames([len(episode.state) - 1], camera="image_0")[0],
    )
    policy = Policy.load(path)
    assert policy.action_steps == 3
    batch = policy._reader.read(everything.with_axis())
    for name in ("frames", "camera_frames"):
        np.testing.assert_array_equal(batch[name], window[name][..., :seen, :, :, :])
    np.testing.assert_array_equal(batch["goal_frame"], window["goal_frame"])
    for name in ("past_actions", "observed_proprio", "observed_reward"):
        np.testing.assert_allclose(batch[name], window[name], rtol=1e-4, atol=1e-4, err_msg=name)
    # An evaluation reads the recorded future too, which at pure noise has no effect.
    windows = {**policy._encode(policy._params, {**batch, "text": window["text"]})}
    latents = windows["observed_latents"]
    future = np.ones((1, experiment.time.latents, *latents.shape[2:]), np.float32)
    windows |= {"target_latents": future, "target_camera_latents": future[:, None]}
    predictor = GraftPredictor(experiment.model, action_steps=3)
    found = predictor.deploy(params, windows, np.array([1], np.int32), rounds=1)
    expected = source.statistics.actions.unnormalise(np.asarray(found["actions"]))[0]
    actions = policy(everything, instruction=text, seed=1)
    np.testing.assert_allclose(actions, expected, rtol=1e-3, atol=1e-4)
    for name, message in (
        ("reward", "observation.reward is missing: the policy reads 2 rewards"),
        ("proprio", "observation.proprio is missing: the policy reads 2 rows of x, y"),
        ("camera_frames", "observation.camera_frames has no camera: expected frames of image_1"),
        ("goal_frame", "observation.goal_frame is missing: the policy reads a picture of the goal"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(dataclasses.replace(everything, **{name: None}), instruction=text)
    assert Policy.load(path, action_steps=1).action_steps == 1
    with pytest.raises(ValueError, match=r"action_steps = 0: expected 1\.\.1000"):
        Policy.load(path, action_steps=0)
