"""Pictures of rounds and seeds: what was drawn is what was given."""

import numpy as np

from roam_jax.viz.curves import draw_curves
from roam_jax.viz.exits import draw_cosines, draw_exits, draw_round_measures


def estimate(mean, *interval):
    return {"mean": mean, "interval": list(interval) or None}


def test_exits(drawn, texts, tmp_path):
    series = {"error": {2: estimate(0.5, 0.4, 0.7), 1: estimate(1.0), 4: estimate(0.25)}}
    panels = {"video": series, "answer": series}
    draw_exits(tmp_path / "x.png", panels, baselines={"video": 2.0}, trained=4)
    video, answer = drawn
    lines = {line.get_label(): line for line in video.get_lines()}
    np.testing.assert_array_equal(lines["error"].get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(lines["error"].get_ydata(), [1.0, 0.5, 0.25])
    assert list(lines["trained"].get_xdata()) == [4, 4]
    assert list(lines["baseline"].get_ydata()) == [2.0, 2.0]
    assert "baseline" not in {line.get_label() for line in answer.get_lines()}
    (band,) = video.collections
    assert {0.4, 0.7} <= set(band.get_paths()[0].vertices[:, 1].round(6))
    texts.require_legible()


def test_round_measures(drawn, texts, tmp_path):
    measures = {"residual": {"video": [0.5, 0.25], "answer": [1.0, 0.75]}}
    draw_round_measures(tmp_path / "x.png", measures)
    (panel,) = drawn
    found = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}
    assert found == measures["residual"]
    assert list(panel.get_lines()[0].get_xdata()) == [1, 2]
    texts.require_legible()


def test_cosines(drawn, texts, tmp_path):
    matrix = np.array([[1.0, -0.25], [-0.25, 1.0]])
    draw_cosines(tmp_path / "x.png", matrix, ["video", "answer"])
    panel = drawn[0]
    np.testing.assert_array_equal(panel.get_images()[0].get_array(), matrix)
    assert sorted(text.get_text() for text in panel.texts) == ["-0.25", "-0.25", "1.00", "1.00"]
    texts.require_legible()


def test_curves_of_seeds(drawn, texts, tmp_path):
    steps, values = np.array([1, 2]), np.array([[1.0, 0.5], [3.0, 0.25]])
    draw_curves(tmp_path / "x.png", {"loss": {"looped": (steps, values)}}, log=True)
    (panel,) = drawn
    (line,) = panel.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [2.0, 0.375])
    assert line.get_label() == "looped (2 seeds)" and panel.get_yscale() == "log"
    (band,) = panel.collections
    assert {1.0, 3.0, 0.25, 0.5} <= set(band.get_paths()[0].vertices[:, 1])
    texts.require_legible()
