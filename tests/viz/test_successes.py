"""Success rates by body and player: what is drawn is what was given."""

import numpy as np

from roam_jax.viz.figure import OBSERVED, PREDICTED
from roam_jax.viz.side_by_side import BORDER, bordered
from roam_jax.viz.successes import draw_successes
from tests.viz.pixels import has_colour


def estimate(mean, *interval):
    return {"mean": mean, "interval": list(interval) or None}


def test_successes(drawn, texts, tmp_path):
    one = {"rounds = 1": estimate(0.5, 0.4, 0.6), "expert": estimate(1.0, 0.98, 1.0)}
    two = {"rounds = 1": estimate(0.25), "expert": estimate(0.75, 0.7, 0.8)}
    draw_successes(tmp_path / "x.png", {"reach/arm2": one, "reach/arm3": two}, title="unseen")
    (panel,) = drawn
    assert [text.get_text() for text in panel.get_xticklabels()] == ["reach/arm2", "reach/arm3"]
    policy, expert = panel.containers
    assert list(policy.lines[0].get_ydata()) == [0.5, 0.25]
    assert list(expert.lines[0].get_ydata()) == [1.0, 0.75]
    (bars,) = policy.lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.4, 0.6], [0.25, 0.25]])
    places = np.array([line.lines[0].get_xdata() for line in panel.containers])
    assert (np.abs(places - [0, 1]) < 0.5).all() and (places[0] != places[1]).all()
    texts.require_legible()


def test_borders_by_frame():
    frames = np.zeros((2, 3, 128, 128, 3), np.uint8)
    green = {"policy": np.array([[0, 1, 0], [0, 0, 1]], bool), "expert": np.ones((2, 3), bool)}
    video = bordered({"policy": frames, "expert": frames}, green) / 255
    tall = 128 + 2 * BORDER
    top = video.shape[1] - 2 * tall - (video.shape[1] - 2 * tall) % 2
    for t in range(3):
        for row in range(2):
            y = top + row * tall
            tile = video[t, y : y + tall, :tall]
            own = OBSERVED if green["policy"][row, t] else PREDICTED
            other = PREDICTED if green["policy"][row, t] else OBSERVED
            assert has_colour(tile, own) and not has_colour(tile, other)
        assert not has_colour(video[t, :, tall:], PREDICTED)
