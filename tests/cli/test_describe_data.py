"""`describe --what data` as a user types it: the report's figures, its pictures, bad input."""

import json

import numpy as np
import pytest

from roam_jax.__main__ import main
from roam_jax.cli import describe_data_pictures
from roam_jax.cli.describe_data_pictures import AUGMENTED, _augmented
from roam_jax.cli.describe_data_text import data_lines
from roam_jax.contracts import TimeSpec
from roam_jax.data.members import DatasetChoice, open_members
from roam_jax.data.options import WindowOptions
from tests.cli.test_describe import FULL
from tests.data import rlds
from tests.data.test_summary import EmptyEpisode
from tests.evaluate.conftest import write_toy
from tests.test_commands import TINY, command

PICTURES = ("lengths", "left_out", "episodes", "actions", "states", "instructions", "window")


def describe(capsys, *arguments) -> list[str]:
    assert command(main, "describe", "--what", "data", "--config", TINY, *arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_one_dataset(robot_root, tmp_path, capsys):
    out = tmp_path / "out"
    lines = describe(capsys, "--out", out, f"--config.data.root={robot_root}")
    paths = [line.split(": ")[1].strip() for line in lines if line.startswith(("report", "pict"))]
    names = {path.name for path in out.iterdir()}
    assert names == {"data.json", *(f"{name}.png" for name in PICTURES)}
    assert {str(out / name) for name in names} == set(paths)
    for name in PICTURES:
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    told = [line for line in lines if not line.startswith(("report", "picture"))]
    unbroken = ("  root: ", "  kept in: ")
    assert max(len(line) for line in told if not line.startswith(unbroken)) <= 100
    report = json.loads((out / "data.json").read_text())
    (member,) = report["members"]
    train = member["splits"]["train"]
    assert f"  root: {robot_root}" in lines
    rows = {row[0]: row[1:] for row in map(str.split, lines) if row}
    counts = [train[name] for name in ("stored", "episodes", "windows", "steps")]
    assert rows["train"][:4] == [f"{count:,}" for count in counts]
    gripper = member["statistics"]["states"]["dimensions"][-1]
    assert rows["gripper"][:4] == ["1", "=", "open", "gripper"]
    assert rows["gripper"][4] == f"{gripper['mean']:.3g}"
    assert f"  kept in: {member['statistics']['cache']}" in lines
    assert any(line.startswith("  statistics: ") for line in lines)


def test_a_mixture(tmp_path, capsys):
    roots = [write_toy(tmp_path / name / "1.0.0", seed=seed) for seed, name in ((0, "a"), (9, "b"))]
    mixture = tuple(
        (name, weight, str(root))
        for name, weight, root in zip(("one", "two_b"), (0.75, 0.25), roots, strict=True)
    )
    lines = describe(
        capsys,
        "--out",
        tmp_path / "out",
        f"--config.data.mixture={mixture!r}",
        "--config.data.cameras=('image_0','image_1')",
        "--config.data.goal=last",
        "--config.data.augment.hue=0.2",
        "--config.train.steps=7",
        "--config.train.batch_size=12",
    )
    # 7 windows each, so that 84 of a run are 9 and 3 passes.
    rows = {row[0]: row[1:] for row in map(str.split, lines) if row}
    assert rows["one"] == ["75.0%", "7", "9", "3x"] and rows["two_b"] == ["25.0%", "7", "3", "1x"]
    assert "  augmented in training: hue 0.2" in lines
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shared, own = PICTURES[:2], PICTURES[2:]
    expected = {f"{name}.png" for name in shared} | {
        f"{member}_{name}.png" for member in ("one", "two_b") for name in own
    }
    assert names == expected | {"data.json"}


def test_episodes_without_a_frame_are_not_drawn(tmp_path, monkeypatch):
    filmed = [rlds.StoredEpisode.random(seed, 12) for seed in range(3)]
    train = [EmptyEpisode(), filmed[0], EmptyEpisode(), filmed[1]]
    root = rlds.write_dataset(tmp_path / "toy", {"train": train, "val": filmed[2:]})
    options = WindowOptions(time=TimeSpec(9, 2), image_size=(8, 8))
    (member,) = open_members([DatasetChoice(root)], options, cameras=("image_0",))
    drawn = []
    monkeypatch.setattr(
        describe_data_pictures, "draw_episodes", lambda *_, titles, labels: drawn.extend(titles)
    )
    describe_data_pictures.draw_some_episodes(tmp_path / "episodes.png", member.train)
    assert drawn == ["train episode 1: do thing 0", "train episode 3: do thing 1"]


def test_augmented_versions_differ_and_keep_time(robot_config):
    robot_config.data.augment.brightness = 0.3
    rng = np.random.default_rng(0)
    frame = rng.integers(60, 190, (1, 8, 8, 3), dtype=np.uint8)
    window = {"frames": np.repeat(frame, 5, axis=0), "text": np.zeros(3)}
    versions = _augmented(window, robot_config)
    assert len(versions) == AUGMENTED
    first, second = (version["frames"] for version in versions)
    assert np.abs(first.astype(int) - second).max() > 3
    assert (first == first[:1]).all()  # the same for all frames
    robot_config.data.augment.brightness = 0.0
    assert _augmented(window, robot_config) == []


def test_published_figures_and_long_names(robot_config):
    """What the embedded data has none of."""
    from roam_jax.cli.describe_data import data_report
    from roam_jax.tasks.augment import Augmentation
    from roam_jax.tasks.datasets import open_data

    report = data_report(open_data(robot_config), robot_config, Augmentation())
    statistics = report["members"][0]["statistics"]
    check = {"name": "x", "quantile": "q01", "measured": -1.5, "published": -0.03}
    statistics["published"] = {
        "datasets": ["bridge"],
        "quantiles": [{**check, "outside": True}, {**check, "outside": False}],
    }
    statistics["actions"]["dimensions"][0]["name"] = "left_arm_shoulder_pan"
    split = report["members"][0]["splits"]["train"]
    names = [f"recordings/{i}.npy" for i in range(5)]
    split["left_out"] = [{"reason": "empty instruction", "episodes": 1234, "names": names}]
    split["instructions"]["frequent"][0] = ["open " * 40, 3]
    lines = list(data_lines({"name": "config.py", **report}))
    text = " ".join(" ".join(lines).split())
    assert "1 of 2 quantiles of actions lie outside of 1/3 to 3 times the published ones" in text
    assert "x q01 -1.5 (published -0.03)" in text
    assert "empty instruction: recordings/0.npy, " in text and "and 1,229 more" in text
    assert any(line.startswith("  left_arm_.. m ") for line in lines)
    unbroken = ("  root: ", "  kept in: ")
    assert max(len(line) for line in lines if not line.startswith(unbroken)) <= 100


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--what", "weights"], "invalid choice: 'weights' (choose from 'model', 'data')"),
        (["--what", "data", "--compile"], "--compile asks what a model needs"),
        (["--what", "data", "--config.data.root=nowhere"], "nowhere"),
        (["--what", "data", "--config.data.root="], "--config.data.root=..."),
        (["--what", "data", "--config.data.frames=41"], "no window left"),
        (["--what", "data", "--config.data.cameras=('image_8',)"], "image_8"),
        (["--what", "data", "--config.data.augment.hue=2"], "data.augment.hue = 2"),
        (["--what", "data", "--config.data.mixture=(('a', 0.5, 'embedded'),)"], "sum to 0.5"),
    ],
)
def test_bad_input_ends_with_one_message(robot_root, arguments, message, capsys):
    line = ["describe", "--config", TINY, f"--config.data.root={robot_root}", *arguments]
    assert command(main, *line) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("error:") == 1 and message in printed.err


def test_the_2b_config_names_what_it_lacks(capsys):
    assert command(main, "describe", "--what", "data", "--config", FULL) == 2
    printed = capsys.readouterr().err
    assert "--config.data.root=..." in printed
    assert "data.text" not in printed and "backbone.path" not in printed


def test_the_2b_config_needs_neither_weights_nor_embeddings(tmp_path, capsys):
    root, out = write_toy(tmp_path / "toy" / "1.0.0", seed=0), tmp_path / "out"
    line = ["--what", "data", "--config", FULL, "--out", out, "--config.data.frames=9"]
    assert command(main, "describe", *line, f"--config.data.root={root}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "text not named yet (data.text is empty)" in text
    assert json.loads((out / "data.json").read_text())["window"]["text"] == ""
    assert (out / "window.png").exists()


def test_a_dataset_without_embeddings_needs_none(tmp_path, capsys):
    splits = {
        split: [rlds.StoredEpisode.random(seed, 12, size=16)]
        for seed, split in enumerate(("train", "val"))
    }
    features = rlds.bridge_features(16, language_embedding=None)
    root = rlds.write_dataset(tmp_path / "toy", splits, features)
    where, out = f"--config.data.root={root}", tmp_path / "out"
    text = " ".join(describe(capsys, where, "--config.data.text=", "--out", out))
    assert "data.text is empty" in text and (out / "window.png").exists()
    assert command(main, "describe", "--what", "data", "--config", TINY, where) == 2
    assert "stores none" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = ["--what", "data", "--config", TINY, "--config.data.root=nowhere"]
    assert command(main, "describe", *line, "--out", tmp_path / "file") == 2
    assert "error: --out" in capsys.readouterr().err
