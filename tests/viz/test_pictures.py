"""Pictures: what they show is read back from the axes or from the written pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from roam_jax.viz import figure as figures
from roam_jax.viz.actions import draw_action_chunks
from roam_jax.viz.batch import draw_windows
from roam_jax.viz.buckets import draw_buckets
from roam_jax.viz.frames import SHOWN, draw_frame_strips
from roam_jax.viz.horizons import draw_horizons
from roam_jax.viz.side_by_side import BORDER, HEADER, LINE, side_by_side
from tests.viz.pixels import has_colour, pixels

NAMES = ("x", "y", "gripper")


def test_action_panels_hold_the_numbers(tmp_path, drawn):
    rng = np.random.default_rng(0)
    past, recorded = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 5, 3))
    predicted = rng.normal(size=(2, 2, 3))
    path = tmp_path / "new" / "actions.png"
    draw_action_chunks(
        path,
        past=past,
        recorded=recorded,
        predicted=predicted,
        names=NAMES,
        units=("m", "rad", "1 = open"),
        titles=["first", "second"],
    )
    assert len(drawn) == 6
    for number, panel in enumerate(drawn):
        window, d = divmod(number, 3)
        lines = {line.get_label(): line.get_xydata() for line in panel.get_lines()}
        for name, values, start in (
            ("past", past, 0),
            ("recorded", recorded, 4),
            ("predicted", predicted, 4),
        ):
            steps = start + np.arange(values.shape[1])
            np.testing.assert_allclose(lines[name], np.c_[steps, values[window, :, d]])
        assert panel.get_ylim() == drawn[d].get_ylim()
    assert drawn[1].get_title() == "y [rad]"
    assert has_colour(pixels(path), figures.PREDICTED)


def test_actions_without_a_past(tmp_path, drawn):
    chunk = np.zeros((1, 4, 3))
    draw_action_chunks(
        tmp_path / "a.png",
        past=np.zeros((1, 0, 3)),
        recorded=chunk,
        predicted=chunk,
        names=NAMES,
        units=NAMES,
        titles=["only"],
    )
    labels = {line.get_label() for line in drawn[0].get_lines()}
    assert "past" not in labels and {"recorded", "predicted"} <= labels


@pytest.mark.parametrize("total, shown", [(9, list(range(9))), (17, list(range(0, 17, 2)))])
def test_frame_strips_show_the_frames_and_which_were_observed(tmp_path, drawn, total, shown):
    rng = np.random.default_rng(1)
    strips = {
        name: rng.integers(0, 256, (2, total, 4, 4, 3), dtype=np.uint8) for name in ("true", "VAE")
    }
    draw_frame_strips(tmp_path / "f.png", strips, titles=["a", "b"], observed=5)
    assert len(drawn) == 2
    for window, axes in enumerate(drawn):
        assert len(axes.images) == 2 * SHOWN
        for image in axes.images:
            left, right, bottom, top = image.get_extent()
            frame = shown[round((left + right) / 2)]
            name = "true" if (bottom + top) / 2 > 1 else "VAE"
            np.testing.assert_array_equal(image.get_array(), strips[name][window, frame])
        labels = [tick.get_text() for tick in axes.get_xticklabels()]
        assert labels == [f"{'observed' if f < 5 else 'frame'} {f}" for f in shown]
        (frame,) = axes.patches
        assert frame.get_width() == sum(f < 5 for f in shown)


def test_first_batch_aligns_actions_with_frames(tmp_path, drawn):
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (2, 1, 9, 4, 4, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (1, 8, 3))
    draw_windows(
        tmp_path / "b.png",
        frames={"front": frames[0], "wrist": frames[1]},
        actions=list(actions),
        observed=5,
        names=[NAMES],
        titles=["a"],
    )
    strip, heat = drawn[:2]
    # The first camera is on top.
    assert [tick.get_text() for tick in strip.get_yticklabels()] == ["wrist", "front"]
    tops = {image.get_extent()[3] // 1 for image in strip.images[:9]}
    assert tops == {0} and (strip.images[0].get_array() == frames[1, 0, 0]).all()
    assert strip.get_xlim() == heat.get_xlim()
    (mesh,) = heat.collections
    np.testing.assert_allclose(mesh.get_array(), actions[0].T)
    # Action i spans from the middle of frame i to that of frame i + 1.
    columns = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(columns, np.arange(9))
    (line,) = heat.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), 4)


def test_bucket_curves(tmp_path, drawn):
    buckets = [
        {"timesteps": [0, 499], "mse": {"mean": 1.0, "interval": [0.5, 2.0]}, "zero_mse": 3.0},
        {"timesteps": [500, 999], "mse": {"mean": 2.0, "interval": None}, "zero_mse": 4.0},
    ]
    draw_buckets(tmp_path / "v.png", {"train": {"model": buckets}, "val": {"model": buckets}})
    assert [axes.get_title(loc="left") for axes in drawn] == ["train", "val"]
    zero = drawn[0].get_lines()[0]
    np.testing.assert_array_equal(zero.get_ydata(), [3.0, 4.0])
    (bars,) = drawn[0].containers
    line, _, (segments,) = bars.lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 2.0])
    ends = np.array([segment[:, 1] for segment in segments.get_segments()])
    np.testing.assert_allclose(ends, [[0.5, 2.0], [2.0, 2.0]])


def test_horizon_curves(tmp_path, drawn):
    frames = [{"mean": 20.0, "interval": [19.0, 22.0]}, {"mean": 18.0, "interval": None}]
    panels = {s: {m: {"rounds = 1": frames} for m in ("psnr", "ssim")} for s in ("train", "val")}
    draw_horizons(tmp_path / "h.png", panels, frames=[5, 6])
    assert [axes.get_title(loc="left") for axes in drawn] == ["train", "val", "", ""]
    assert [axes.get_ylabel() for axes in drawn] == ["PSNR [dB]", "", "SSIM", ""]
    (line,) = drawn[0].get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[5, 20], [6, 18]])
    corners = {tuple(v) for v in drawn[0].collections[0].get_paths()[0].vertices.tolist()}
    assert {(5.0, 19.0), (5.0, 22.0), (6.0, 18.0)} <= corners


def test_clips_side_by_side():
    rng = np.random.default_rng(3)
    strips = {
        name: rng.integers(0, 256, (2, 4, 65, 33, 3), dtype=np.uint8) for name in ("true", "a\nb")
    }
    video = side_by_side(strips, observed=3)
    assert video.dtype == np.uint8 and len(video) == 4
    assert video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    scale, top = 2, HEADER + 2 * LINE
    tall, wide = 65 * scale + 2 * BORDER, 33 * scale + 2 * BORDER
    for t, colour in ((2, figures.OBSERVED), (3, figures.PREDICTED)):
        for row in range(2):
            for column, frames in enumerate(strips.values()):
                tile = video[t, top + row * tall :, column * wide :][:tall, :wide]
                inside = tile[BORDER:-BORDER, BORDER:-BORDER]
                np.testing.assert_array_equal(inside[::scale, ::scale], frames[row, t])
                np.testing.assert_array_equal(inside[1::scale, 1::scale], frames[row, t])
                border = np.round(np.array(to_rgb(colour)) * 255)
                np.testing.assert_array_equal(tile[0, 0], border)
    names = video[0, :top]
    assert (names < 128).any() and (names == video[3, :top]).all()


def test_a_failed_picture_leaves_the_old_one(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), figures.picture(path, width=1, height=1):
        raise RuntimeError("while drawing")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
