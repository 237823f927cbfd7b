"""The picture of a loop: as wide as its rounds, whole or not there."""

from PIL import Image

from roam_jax.viz.figure import DPI
from roam_jax.viz.loop_diagram import STEP, draw_loop


def test_a_round_more_is_a_step_wider(tmp_path):
    widths = []
    for rounds in (3, 4):
        draw_loop(tmp_path / f"{rounds}.png", rounds=rounds)
        widths.append(Image.open(tmp_path / f"{rounds}.png").size[0])
    assert abs(widths[1] - widths[0] - STEP * DPI) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.png", "4.png"]
