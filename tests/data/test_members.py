"""Datasets of a run: weights, dimensions that differ, statistics of each, splits."""

import dataclasses

import numpy as np
import pytest

from roam_jax.contracts import POSE_AND_GRIPPER, TimeSpec
from roam_jax.data import cached_statistics
from roam_jax.data.loader import make_loader
from roam_jax.data.members import DatasetChoice, open_members
from roam_jax.data.options import WindowOptions
from tests.data import rlds

# The same stored features, read as another robot: two commands that are deltas, a gripper in
# between and a state of its own name.
OTHER = """
from roam_jax.data.declaration import DatasetDeclaration, Stored

DATASET = DatasetDeclaration(
    name="other robot",
    cameras={"image_0": "steps/observation/image_0"},
    state=(
        Stored(("shoulder",), "steps/observation/state", kind="angle", unit="rad", columns=(3,)),
        Stored(("x",), "steps/observation/state", unit="m", columns=(0,)),
    ),
    action=(
        Stored(("shoulder",), "steps/action", kind="angle", unit="rad", columns=(1,)),
        Stored(("gripper",), "steps/action", kind="gripper", unit="1 = open", columns=(6,)),
        Stored(("x",), "steps/action", unit="m", columns=(0,)),
    ),
    rate=5.0,
    embedding="steps/language_embedding",
)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options():
    return WindowOptions(time=TimeSpec(frames=9, t_current=2), image_size=(8, 8))


def write(root, first, *, steps=(10, 12)):
    train = [rlds.StoredEpisode.random(first + i, n) for i, n in enumerate(steps)]
    return rlds.write_dataset(
        root, {"train": train, "val": [rlds.StoredEpisode.random(first + 50, 11)]}
    )


@pytest.fixture
def roots(tmp_path):
    return [write(tmp_path / name, first) for name, first in (("one", 0), ("two", 100))]


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.py"
    path.write_text(OTHER)
    return str(path)


def mix(roots, *weights, declarations=("auto", "auto")):
    return [
        DatasetChoice(root, name, weight, declaration)
        for root, name, weight, declaration in zip(
            roots, ("one", "two"), weights, declarations, strict=True
        )
    ]


def test_one_dataset_is_a_member_without_a_name(roots, options):
    (member,) = open_members([DatasetChoice(roots[0])], options, cameras=("image_0",))
    assert (member.name, member.weight, len(member.train), len(member.val)) == ("", 1.0, 4, 2)
    assert member.statistics is member.train.statistics
    # The scale is that of the train split, in both.
    assert member.val.statistics == member.statistics and member.statistics.episodes == 2


def test_members_are_scaled_by_their_own_statistics(roots, options):
    members = open_members(mix(roots, 0.25, 0.75), options, cameras=("image_0",))
    one, two = (member.statistics.actions for member in members)
    assert one.q99 != two.q99
    for number, member in enumerate(members):
        window = member.train[0]
        assert int(window["dataset"]) == number and "action_mask" not in window
        stored = rlds.StoredEpisode.random(100 * number, 10)
        moved = np.diff(stored.state[1:, :3], axis=0)[4:]
        chunk = member.statistics.actions.unnormalise(window["action_chunk"])[:, :3]
        inside = np.abs(window["action_chunk"][:, :3]) < 1
        np.testing.assert_allclose(chunk[inside], moved[inside], atol=1e-5)


def test_other_dimensions_are_put_together_by_name(roots, other, options):
    choices = mix(roots, 0.5, 0.5, declarations=("auto", other))
    members = open_members(choices, options, cameras=("image_0",), actions="pad")
    names = [*POSE_AND_GRIPPER.names, "shoulder"]
    bridge, robot = (member.train[0] for member in members)
    np.testing.assert_array_equal(bridge["action_mask"], [1] * 7 + [0])
    np.testing.assert_array_equal(robot["action_mask"], [1, 0, 0, 0, 0, 0, 1, 1])
    assert members[1].train.action_places == [names.index(n) for n in ("shoulder", "gripper", "x")]
    # Its own numbers at their places, in the robot's own scale; 0 elsewhere.
    stored, actions = rlds.StoredEpisode.random(100, 10), members[1].statistics.actions
    chunk = robot["action_chunk"]
    assert not chunk[:, 1:6].any()
    # Nothing is skipped at the start here: the window's frame 0 is stored step 0.
    place = actions.spec.names.index("x")
    low, high = actions.q01[place], actions.q99[place]
    expected = np.clip(2 * (stored.action[4:8, 0] - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(chunk[:, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(robot["proprio_mask"], [1, 0, 0, 0, 0, 0, 0, 1])
    assert members[1].train.proprio_places == [names.index("shoulder"), names.index("x")]
    batch = next(make_loader([(m.train, m.weight) for m in members], batch_size=4, seed=0))
    masks = np.stack([bridge["action_mask"], robot["action_mask"]])
    np.testing.assert_array_equal(batch["action_mask"], masks[batch["dataset"]])


def test_other_dimensions_without_a_rule(roots, other, options):
    choices = mix(roots, 0.5, 0.5, declarations=("auto", other))
    with pytest.raises(ValueError, match=r"one: actions x, y, .*\(7\).*two: actions shoulder.*pad"):
        open_members(choices, options, cameras=("image_0",))
    with pytest.raises(ValueError, match="data.mixture_actions = 'padd'.*did you mean 'pad'"):
        open_members(choices, options, cameras=("image_0",), actions="padd")


def test_one_name_for_two_things(roots, tmp_path, options):
    path = tmp_path / "feet.py"
    path.write_text(OTHER.replace('unit="m"', 'unit="ft"'))
    choices = mix(roots, 0.5, 0.5, declarations=("auto", str(path)))
    with pytest.raises(ValueError, match=r"dimension 'x' is \('m', 'change'\) in one.*'ft'"):
        open_members(choices, options, cameras=("image_0",), actions="pad")


def test_a_change_and_a_place_are_two_things(roots, tmp_path, options):
    path = tmp_path / "places.py"
    path.write_text(
        OTHER.replace(
            "columns=(0,)),\n    ),\n    rate",
            'columns=(0,), per_step="absolute"),\n    ),\n    rate',
        )
    )
    choices = mix(roots, 0.5, 0.5, declarations=("auto", str(path)))
    with pytest.raises(ValueError, match=r"'x' is \('m', 'change'\) in one.*\('m', 'linear'\)"):
        open_members(choices, options, cameras=("image_0",), actions="pad")


@pytest.mark.parametrize(
    "splits", [("train[:50%]", "train[50%:]"), ("train[:1]", "train[1:]"), ("train", "val[:1]")]
)
def test_splits_may_be_parts(roots, options, splits):
    (member,) = open_members(
        [DatasetChoice(roots[0])], options, cameras=("image_0",), splits=splits
    )
    names = [list(source.reader.headers.names) for source in (member.train, member.val)]
    first, second, val = (f"/recordings/{i}.npy#{i}" for i in (0, 1, 50))
    if splits[0] == "train":
        assert names == [[first, second], [val]]
    else:
        assert names == [[first], [second]]
        # The part's own episodes, and its own scale.
        np.testing.assert_array_equal(
            member.val[0]["frames"], rlds.StoredEpisode.random(1, 12).frames[1:10]
        )
        assert member.statistics.episodes == 1
    assert member.train.fingerprint != member.val.fingerprint


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), r"data.splits = \('train',\): expected two"),
        (("train[:x]", "val"), r"split 'train\[:x\]': expected a part such as train\[:95%\]"),
        (("trian[:5%]", "val"), "no split 'trian'; did you mean 'train'"),
        (("train[:1%]", "val"), r"split 'train\[:1%\]' is empty"),
        (("train", "train[50%:]"), "1 episodes lie in both train and train"),
    ],
)
def test_splits_that_are_none(roots, options, splits, message):
    with pytest.raises(ValueError, match=message):
        open_members([DatasetChoice(roots[0])], options, cameras=("image_0",), splits=splits)


def test_a_known_scale_is_kept_for_the_same_episodes_only(roots, options):
    choices = mix(roots, 0.5, 0.5)
    one, two = open_members(choices, options, cameras=("image_0",))
    actions = dataclasses.replace(one.statistics.actions, q99=(9.0,) * 7)
    known = {
        "one": dataclasses.replace(one.statistics, actions=actions),
        "two": dataclasses.replace(two.statistics, actions=actions, fingerprint="other"),
    }
    again = open_members(choices, options, cameras=("image_0",), known=known)
    assert again[0].statistics == known["one"] and again[1].statistics == two.statistics


def test_errors_name_the_member(roots, tmp_path, options):
    with pytest.raises(FileNotFoundError, match=r"member 'two': data.root = .*nowhere"):
        open_members(mix([roots[0], tmp_path / "nowhere"], 0.5, 0.5), options, cameras=("image_0",))
    slower = dataclasses.replace(options, rate=4.0)
    with pytest.raises(ValueError, match=r"member 'one': data.rate = 4: the dataset has 5"):
        open_members(mix(roots, 0.5, 0.5), slower, cameras=("image_0",))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.4), r"weights one 0.5, two 0.4 sum to 0.9, expected 1 \(such as one 0.5556"),
        ((1.0, 0.0), r"weights \{'two': 0.0\}: expected numbers above 0"),
        ((1.5, -0.5), r"weights \{'two': -0.5\}: expected numbers above 0"),
        ((1.0, 1e-7), r"weights \{'two': 1e-07\}: expected numbers above 0, at least 1e-06"),
    ],
)
def test_weights_that_are_none(roots, weights, message, options):
    with pytest.raises(ValueError, match=message):
        open_members(mix(roots, *weights), options, cameras=("image_0",))


def test_two_members_of_one_name(roots, options):
    choices = [DatasetChoice(root, "one", 0.5) for root in roots]
    with pytest.raises(ValueError, match=r"names \['one', 'one'\]; expected a name for each"):
        open_members(choices, options, cameras=("image_0",))


def test_a_name_that_no_file_could_have(roots, options):
    choices = [
        DatasetChoice(root, name, 0.5) for root, name in zip(roots, ("a/b", "c"), strict=True)
    ]
    with pytest.raises(ValueError, match=r"names \['a/b'\]: expected letters"):
        open_members(choices, options, cameras=("image_0",))


def test_an_episode_that_another_member_validates_on(tmp_path, roots, options):
    train = [rlds.StoredEpisode.random(50, 11), rlds.StoredEpisode.random(51, 11)]
    val = [rlds.StoredEpisode.random(52, 11)]
    other = rlds.write_dataset(tmp_path / "other", {"train": train, "val": val})
    with pytest.raises(ValueError, match="lie in both train of two and val of one, such as .*50"):
        open_members(mix([roots[0], other], 0.5, 0.5), options, cameras=("image_0",))


def test_a_scale_outlives_the_rules_of_counting(roots, options, monkeypatch):
    """What a later version counts otherwise must not rescale a run that goes on."""
    (member,) = open_members([DatasetChoice(roots[0])], options, cameras=("image_0",))
    actions = dataclasses.replace(member.statistics.actions, q99=(9.0,) * 7)
    known = {"": dataclasses.replace(member.statistics, actions=actions, root="elsewhere")}
    monkeypatch.setattr(cached_statistics, "RULES", "other rules")
    (again,) = open_members([DatasetChoice(roots[0])], options, cameras=("image_0",), known=known)
    assert again.statistics.actions == actions and again.statistics.root == str(roots[0])


def test_an_empty_member_is_named(roots, tmp_path, options):
    short = write(tmp_path / "short", 200, steps=(5, 6))
    with pytest.raises(ValueError, match="data.mixture member 'two': .*no window left in split"):
        open_members(mix([roots[0], short], 0.5, 0.5), options, cameras=("image_0",))


def test_a_camera_that_a_member_lacks(roots, other, options):
    choices = mix(roots, 0.5, 0.5, declarations=("auto", other))
    with pytest.raises(ValueError, match=r"no RGB camera 'image_1'; did you mean 'image_0'"):
        open_members(choices, options, cameras=("image_0", "image_1"), actions="pad")


def test_an_episode_in_both_splits(tmp_path, options):
    episodes = [rlds.StoredEpisode.random(i, 11) for i in range(3)]
    root = rlds.write_dataset(tmp_path / "leak", {"train": episodes, "val": episodes[1:2]})
    with pytest.raises(ValueError, match=r"1 episodes lie in both train and val, such as .*1.npy"):
        open_members([DatasetChoice(root)], options, cameras=("image_0",))


def test_other_statistics_rescale_the_same_windows(roots, options):
    one, two = open_members(mix(roots, 0.5, 0.5), options, cameras=("image_0",))
    rescaled = one.with_statistics(two.statistics)
    before, after = one.train[2], rescaled.train[2]
    np.testing.assert_array_equal(before["frames"], after["frames"])
    raw = one.statistics.actions.unnormalise(before["action_chunk"])
    inside = np.abs(before["action_chunk"]) < 1
    expected = two.statistics.actions.normalise(raw)
    np.testing.assert_allclose(after["action_chunk"][inside], expected[inside], atol=1e-5)


def test_real_splits_share_no_episode_and_one_scale(bridge_root):
    options = WindowOptions(time=TimeSpec(9, 2), image_size=(64, 64))
    (member,) = open_members([DatasetChoice(bridge_root)], options, cameras=("image_0",))
    assert (len(member.train), len(member.val), member.statistics.episodes) == (16, 4, 16)
