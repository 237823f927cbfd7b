"""Pictures of data: the numbers that they show, and texts that can be read."""

import numpy as np
import pytest

from roam_jax.viz import figure as figures
from roam_jax.viz.counts import draw_instructions, draw_left_out, draw_lengths
from roam_jax.viz.distributions import COLUMNS, draw_distributions
from roam_jax.viz.episodes import draw_episodes
from roam_jax.viz.window import MOST_FRAMES, WindowPicture, draw_window
from tests.viz.pixels import has_colour, pixels


def dimension(name, kind="linear", *, low=-0.02, high=0.03):
    edges = np.linspace(-0.05, 0.05, 5).tolist()
    shares = {"train": [0.1, 0.5, 0.3, 0.1], "val": [0.0, 0.75, 0.25, 0.0]}
    stored = {"edges": edges, "shares": shares, "outside": {"train": 0.125, "val": 0.0}}
    normalised = {**stored, "edges": [-1, -0.5, 0, 0.5, 1], "outside": {"train": 0, "val": 0}}
    return {
        "name": name,
        "unit": "m",
        "kind": kind,
        "q01": low,
        "q99": high,
        "clipped": {"train": 0.02, "val": 0.0},
        "stored": stored,
        "normalised": normalised,
    }


def test_histograms_before_and_after_normalisation(tmp_path, drawn, texts):
    dimensions = [dimension("x"), dimension("still", low=0.1, high=0.1)]
    dimensions.append(dimension("gripper", "gripper", low=0.0, high=1.0))
    path = tmp_path / "actions.png"
    draw_distributions(path, dimensions, title="3 actions")
    assert len(drawn) == 6
    stored, normalised = drawn[:2]
    assert stored.get_title() == "x [m]"
    shares = dimensions[0]["stored"]["shares"]
    for split, patch in zip(shares, stored.patches, strict=True):
        values, edges, _ = patch.get_data()
        np.testing.assert_array_equal(values, shares[split])
        np.testing.assert_array_equal(edges, dimensions[0]["stored"]["edges"])
    assert [line.get_xdata()[0] for line in stored.get_lines()] == [-0.02, 0.03]
    assert [line.get_xdata()[0] for line in normalised.get_lines()] == [-1, 1]
    assert normalised.get_title() == "in [-1, 1], 2.0% clipped"
    titles = [panel.get_title() for panel in drawn[3::2]]
    assert titles == ["never changes: 0", "not scaled"]
    assert not drawn[4].get_lines() and "12.5%" in stored.texts[0].get_text()
    assert has_colour(pixels(path), figures.PREDICTED)


@pytest.mark.parametrize("count", [1, COLUMNS, 2 * COLUMNS])
def test_any_number_of_dimensions_is_legible(tmp_path, drawn, texts, count):
    dimensions = [dimension(f"joint_{i}", low=-0.0213, high=0.0332) for i in range(count)]
    draw_distributions(tmp_path / "a.png", dimensions, title="bridge: 2,135,463 actions")
    assert len(drawn) == 2 * count
    texts.require_legible()


def test_episode_strips(tmp_path, drawn, texts):
    rng = np.random.default_rng(0)
    episodes = [
        {
            "front": rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8),
            "wrist": rng.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8),
        }
        for _ in range(2)
    ]
    labels = [[f"step {i}, {i / 5:g} s" for i in (0, 11, 22, 33)]] * 2
    titles = ["train episode 0: reach", "train episode 9: " + 40 * "PAY $5 "]
    draw_episodes(tmp_path / "e.png", episodes, titles=titles, labels=labels)
    assert len(drawn) == 4
    for number, axes in enumerate(drawn):
        episode, camera = divmod(number, 2)
        name = list(episodes[0])[camera]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [name]
        for i, image in enumerate(axes.images):
            np.testing.assert_array_equal(image.get_array(), episodes[episode][name][i])
        # A frame keeps its shape.
        (left, right, bottom, top), size = axes.images[0].get_extent(), axes.get_window_extent()
        across = (right - left) * size.width / 4
        up = (top - bottom) * size.height
        height, width = episodes[0][name].shape[1:3]
        assert up / across == pytest.approx(height / width, rel=0.03)
    assert [tick.get_text() for tick in drawn[1].get_xticklabels()] == labels[0]
    texts.require_legible()


def split(*, left_out=()):
    lengths = {"edges": [10, 20, 30, 40], "used": [0, 5, 2], "left_out": [3, 0, 0]}
    lengths |= {"median": 24.0, "mean": 25.0}
    return {
        "lengths": lengths,
        "span": 18,
        "stored": 10,
        "episodes": 10 - sum(found["episodes"] for found in left_out),
        "windows": 1234,
        "left_out": list(left_out),
    }


def test_lengths(tmp_path, drawn):
    draw_lengths(tmp_path / "l.png", {"train": split(), "val": split(), "b val": split()})
    assert [panel.get_title(loc="left") for panel in drawn[:3]] == ["train", "val", "b val"]
    used, left_out = drawn[0].patches
    np.testing.assert_array_equal(used.get_data().values, [0, 5, 2])
    np.testing.assert_array_equal(left_out.get_data().values, [3, 5, 2])
    np.testing.assert_array_equal(left_out.get_data().baseline, [0, 5, 2])
    assert [line.get_xdata()[0] for line in drawn[0].get_lines()] == [18, 24]
    assert not drawn[3].get_visible()


def test_instructions(tmp_path, drawn, texts):
    counts = {"train": [("", 12), ("pay $5 and $6", 7), (50 * "long ", 1)], "val": [("reach", 3)]}
    draw_instructions(tmp_path / "i.png", counts, title="the most frequent instructions")
    train, val = drawn
    assert [bar.get_width() for bar in train.patches] == [12, 7, 1]
    names = [tick.get_text() for tick in train.get_yticklabels()]
    assert names[:2] == ["(no instruction)", r"pay \$5 and \$6"] and names[2].endswith("...")
    assert [bar.get_width() for bar in val.patches] == [3]
    texts.require_legible()


def test_left_out(tmp_path, drawn, texts):
    short = {"reason": "fewer than 17 steps", "episodes": 3, "names": ["a", "/b" * 40, "c"]}
    empty = {"reason": "empty instruction", "episodes": 2, "names": ["d", "e"]}
    draw_left_out(tmp_path / "l.png", {"train": split(left_out=(short, empty)), "val": split()})
    widths = [bar.get_width() for bar in drawn[0].patches]
    assert widths == [5, 3, 2]
    assert [bar.get_x() for bar in drawn[0].patches] == [0, 5, 8]
    written = "\n".join(texts.boxes)
    assert "3 left out (30.0%), fewer than 17 steps: a, ...b/b/b" in written
    assert "empty instruction: d, e" in written and "nothing was left out" in written
    assert "train: 10 episodes, 1,234 windows" in written
    texts.require_legible()


def window(frames, observed, *, cameras=("front",), goal=False, names=("x", "y", "gripper")):
    rng = np.random.default_rng(1)
    latents = (frames - 1) // 4 + 1
    strips = {c: rng.integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8) for c in cameras}
    return WindowPicture(
        strips=strips,
        goal={cameras[0]: strips[cameras[0]][-1]} if goal else {},
        goal_label="goal: any later step",
        past_actions=rng.uniform(-1, 1, (observed - 1, len(names))),
        action_chunk=rng.uniform(-1, 1, (frames - observed, len(names))),
        proprio=rng.uniform(-1, 1, (latents, 2)),
        reward=np.arange(latents, dtype=float),
        action_names=names,
        proprio_names=("elbow", "wrist"),
        observed=observed,
        rate=5.0,
    )


def test_a_window_lies_on_one_axis_of_time(tmp_path, drawn):
    shown = window(9, 5)
    draw_window(tmp_path / "w.png", shown, title="train episode 3")
    axes = drawn[0]
    middles = [np.mean(image.get_extent()[:2]) for image in axes.images]
    for image, frame in zip(axes.images, shown.strips["front"], strict=True):
        np.testing.assert_array_equal(image.get_array(), frame)
    (second,) = {round(gap, 6) for gap in np.diff(middles)}
    # An action leads from the middle of a frame to that of the next.
    meshes = axes.collections
    actions = np.concatenate([shown.past_actions, shown.action_chunk])
    for i, mesh in enumerate(meshes[:8]):
        left, right = mesh.get_coordinates()[0, :, 0]
        assert (left, right) == pytest.approx((middles[i], middles[i] + second))
        np.testing.assert_array_equal(np.ravel(mesh.get_array()), actions[i])
    # Robot states are those of frames 0, 4 and 8.
    for k, mesh in enumerate(meshes[8:]):
        assert mesh.get_coordinates()[0, :, 0].mean() == pytest.approx(middles[4 * k])
        np.testing.assert_array_equal(np.ravel(mesh.get_array()), shown.proprio[k])
    # The line lies after frame 4, and at its middle where the actions are.
    (line,) = axes.get_lines()
    places = (np.array(line.get_xdata()) - middles[4]) / second
    np.testing.assert_allclose(places, [0.5, 0.5, 0, 0, 0.5, 0.5])
    # Latent frame 2 covers frames 5 to 8.
    boxes = [patch for patch in axes.patches if patch.get_alpha() == 0.16]
    assert len(boxes) == 3
    ends = boxes[2].get_x(), boxes[2].get_x() + boxes[2].get_width()
    np.testing.assert_allclose((np.array(ends) - middles[4]) / second, [0.5, 4.5], atol=0.05)
    written = {text.get_text() for text in axes.texts}
    assert {"latent 2 (frames 5 to 8)", "frame 8\n1.6 s", "t_current"} <= written


def overlap(one, other) -> bool:
    """Of two boxes, each (low, high) corners."""
    return bool((np.maximum(one[0], other[0]) < np.minimum(one[1], other[1])).all())


@pytest.mark.parametrize(
    "shown",
    [
        window(5, 1, goal=True),
        window(17, 5, cameras=("image_0", "image_0\naugmented 1", "image_1"), goal=True),
        window(49, 9, names=("shoulder_pan", "elbow", "gripper")),
    ],
    ids=["short", "cameras", "long"],
)
def test_windows_of_any_length_are_legible(tmp_path, drawn, texts, shown):
    draw_window(tmp_path / "w.png", shown, title="train episode 3, from kept step 0: reach")
    every = 1 if shown.frames <= MOST_FRAMES else 4
    count = len(range(0, shown.frames, every)) * len(shown.strips) + len(shown.goal)
    assert len(drawn[0].images) == count
    # No picture lies on another one, on the line, or on what is written.
    (line,) = drawn[0].get_lines()
    saved = figures.DPI / drawn[0].figure.dpi
    boxes = [image.get_window_extent().get_points() * saved for image in drawn[0].images]
    written = list(texts.boxes.values())
    for image, box in zip(drawn[0].images, boxes, strict=True):
        left, right, *_ = image.get_extent()
        assert not left < line.get_xdata()[0] < right
        assert sum(overlap(box, other) for other in [*boxes, *written]) == 1
    texts.require_legible()
