"""A run on two robots with other dimensions: each is measured apart, by its own figures."""

import json
import shutil

import numpy as np
import pytest

from roam_jax.evaluate import run as run_module
from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.observation import Observation
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.predictor import GraftPredictor
from roam_jax.evaluate.run import evaluate_workdir, make_evaluate_hook
from roam_jax.evaluate.splits import file_name, own_dimensions, own_train_split
from roam_jax.tasks.build import build
from roam_jax.train.workdir import Workdir
from tests.evaluate.conftest import make_config, make_params, write_run, write_toy
from tests.evaluate.test_run import with_overrides

KINDS = ("actions", "frames")

# Of the stored numbers of a toy episode, another robot: two joints in degrees and a position.
ARM = """
from roam_jax.data.declaration import DatasetDeclaration, Stored

STATE = "steps/observation/state"
DATASET = DatasetDeclaration(
    name="arm",
    cameras={"image_0": "steps/observation/image_0"},
    state=(Stored(("elbow", "wrist"), STATE, unit="deg", columns=(3, 4)),),
    action=(
        Stored(("elbow", "wrist"), "steps/action", unit="deg", columns=(3, 4)),
        Stored(("z",), "steps/action", unit="m", columns=(2,)),
    ),
    rate=5.0,
    instruction="steps/language_instruction",
    embedding="steps/language_embedding",
    episode_name=("episode_metadata/file_path",),
)
"""


@pytest.fixture(scope="module")
def entries(toy_root, tmp_path_factory):
    """The mixture of the config: "gantry" as Bridge, and "arm"."""
    folder = tmp_path_factory.mktemp("arm")
    (folder / "arm.py").write_text(ARM)
    root = write_toy(folder / "1.0.0", seed=50)
    return ("gantry", 0.75, str(toy_root)), ("arm", 0.25, str(root), str(folder / "arm.py"))


@pytest.fixture(scope="module")
def mixed(weights, toy_root, entries):
    config = make_config(weights, toy_root)
    config.data.mixture, config.data.mixture_actions = entries, "pad"
    config.canvas.proprio, config.canvas.proprio_weight = True, 1.0
    config.loop.rounds = 1
    return build(config)


@pytest.fixture(scope="module")
def mixed_params(mixed):
    return make_params(mixed)


@pytest.fixture(scope="module")
def evaluation(mixed):
    return GraftEvaluation(mixed)


@pytest.fixture(scope="module")
def mixed_report(evaluation, mixed_params):
    return evaluation.report(mixed_params, rounds=(1,))


def test_names_of_splits():
    assert own_train_split("val") == own_train_split("train") == "train"
    assert own_train_split("val/a/b") == "train/a/b"
    assert file_name("val/arm") == "val_arm"


def test_figures_are_of_a_members_own_dimensions(mixed, evaluation, mixed_params, mixed_report):
    splits = ["train/gantry", "train/arm", "val/gantry", "val/arm"]
    assert list(mixed_report) == list(mixed.splits) == splits
    arm = mixed.splits["val/arm"]
    assert arm.action_places == [7, 8, 2] and arm.proprio_places == [7, 8]
    windows = [arm[i] for i in range(len(arm))]
    batch = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    indices = np.arange(len(arm), dtype=np.int32)
    predictor = evaluation._predictor
    encoded = predictor.encode(mixed_params, batch)
    found = predictor.deploy(mixed_params, encoded, indices, rounds=1)
    error = np.asarray(found["actions"], np.float64) - batch["action_chunk"]
    assert np.abs(error[..., [0, 1, 3]]).max() > 0.01  # of dimensions that the arm lacks
    figures = mixed_report["val/arm"]["rounds"]["1"]
    own = (error[..., [7, 8, 2]] ** 2).mean()
    assert figures["actions"]["chunk"]["mse"]["mean"] == pytest.approx(own, rel=1e-4)
    span = np.subtract(arm.statistics.actions.q99, arm.statistics.actions.q01) / 2
    absolute = np.abs(error[..., [7, 8, 2]]).mean(axis=(0, 1)) * span
    expected = dict(zip(("elbow", "wrist", "z"), absolute, strict=True))
    assert figures["actions"]["chunk"]["absolute_error"] == pytest.approx(expected, rel=1e-4)
    assert "gripper_accuracy" not in figures["actions"]["chunk"]
    assert "gripper_accuracy" in mixed_report["val/gantry"]["rounds"]["1"]["actions"]["chunk"]
    assert mixed_report["val/arm"]["action_units"] == {"elbow": "deg", "wrist": "deg", "z": "m"}
    proprio = own_dimensions(found["proprio"], arm, "proprio") - batch["future_proprio"][..., 7:]
    mse = figures["streams"]["proprio"]["mse"]["mean"]
    assert mse == pytest.approx((proprio.astype(np.float64) ** 2).mean(), rel=1e-4)


def test_the_mean_action_is_that_of_the_members_own_train_split(mixed, mixed_report):
    train, val = (
        np.stack([source[i]["action_chunk"] for i in range(len(source))])[..., [7, 8, 2]]
        for source in (mixed.splits["train/arm"], mixed.splits["val/arm"])
    )
    expected = ((val - train.mean(axis=(0, 1), dtype=np.float64)) ** 2).mean()
    baseline = mixed_report["val/arm"]["baselines"]["training_mean"]["chunk"]
    assert baseline["mse"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_metrics_and_pictures_carry_the_members_names(
    mixed, evaluation, mixed_params, mixed_report, tmp_path
):
    metrics = evaluation.metrics(mixed_params)
    figures = mixed_report["val/arm"]["rounds"]["1"]
    assert metrics["arm/action_mse"] == figures["actions"]["chunk"]["mse"]["mean"]
    names = {"action_mse", "first_action_mse", "diffusion"}
    expected = {f"{member}/{name}" for member in ("gantry", "arm") for name in names}
    assert set(metrics) == expected | {"gantry/gripper_accuracy"}
    assert callable(make_evaluate_hook(mixed))
    evaluation.draw(mixed_params, mixed_report, tmp_path / "3", rounds=(1,))
    kinds = [f"{s}_{m}_{k}" for s in ("train", "val") for m in ("gantry", "arm") for k in KINDS]
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"3_video.png", *(f"3_{kind}.png" for kind in kinds)}


def test_a_policy_acts_for_one_member_of_a_mixture(mixed, mixed_params, tmp_path):
    path = write_run(tmp_path / "run", mixed, mixed_params, scales={1: 1.0})
    with pytest.raises(
        ValueError, match="robot: the run has several robots; expected one of gantry"
    ):
        Policy.load(path)
    policy, arm = Policy.load(path, robot="arm"), mixed.splits["val/arm"]
    assert policy.actions.names == ("elbow", "wrist", "z")
    window = {name: np.asarray(value)[None] for name, value in arm[0].items()}
    own = GraftPredictor(mixed.model)
    encoded = own.encode(mixed_params, window)
    found = own.deploy(mixed_params, encoded, np.zeros(1, np.int32), rounds=1)
    chunk = np.asarray(found["actions"])[0][:, arm.action_places]
    episode, first = arm.reader[int(window["episode"][0])], int(window["start"][0])
    steps = range(first, first + 5)
    observation = Observation(
        episode.frames(steps, camera="image_0"),
        episode.command[first : first + 4],
        proprio=episode.state[[first, first + 4]],
    )
    actions = policy(observation, instruction=episode.language_embedding)
    expected = arm.statistics.actions.unnormalise(chunk)
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)


class Measured(Exception):
    """Stands for what would follow: nothing was refused."""


@pytest.fixture
def workdir(mixed, tmp_path, monkeypatch):
    """A workdir without checkpoints; what is built of it is looked at before any is needed."""
    folder = Workdir(tmp_path / "run")
    folder.create(mixed.config, mixed.provenance())
    seen = []

    def make_evaluation(experiment, *, extrapolate):
        seen.append(experiment)
        raise Measured

    monkeypatch.setattr(run_module, "make_evaluation", make_evaluation)
    return folder.path, seen


def test_members_may_lie_elsewhere_and_be_of_other_episodes(workdir, entries, mixed, tmp_path):
    path, seen = workdir
    other = write_toy(tmp_path / "other" / "1.0.0", seed=100)
    moved = shutil.copytree(entries[1][2], tmp_path / "moved" / "1.0.0")
    entries = ("gantry", 0.5, str(other)), ("arm", 0.5, str(moved), entries[1][3])
    with pytest.raises(Measured):
        evaluate_workdir(path, overrides=with_overrides(f"data.mixture={entries!r}"))
    (experiment,) = seen
    roots = [str(member.val.reader.root) for member in experiment.members]
    assert roots == [str(other), str(moved)]
    for trained, member in zip(mixed.members, experiment.members, strict=True):
        assert member.statistics == member.val.statistics == trained.statistics


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda one, two: (two, one), "members arm, gantry; .* was trained with gantry, arm"),
        (lambda one, two: (one, ("hand", *two[1:])), "members gantry, hand; "),
        (lambda one, two: (one, two[:3]), "data arm in .*: actions are .* was trained with"),
    ],
)
def test_other_members_are_refused(workdir, entries, change, message):
    changed = change(*entries)
    with pytest.raises(ValueError, match=message):
        evaluate_workdir(workdir[0], overrides=with_overrides(f"data.mixture={changed!r}"))


def test_changed_data_of_a_member_is_refused(workdir):
    path, _ = workdir
    saved = json.loads((path / "config.json").read_text())
    saved["provenance"]["fingerprints"]["data/arm/val"] = "0" * 64
    (path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="data/arm/val at data.mixture = .* has fingerprint"):
        evaluate_workdir(path)
