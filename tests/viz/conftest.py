"""What was drawn, read back from the figures."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


@pytest.fixture
def drawn(monkeypatch):
    """All axes of the figures that were saved, panels in drawing order."""
    seen: list = []
    save = Figure.savefig

    def savefig(self, *args, **kwargs):
        seen.extend(self.axes)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


class Texts:
    """The texts of a picture, each with the pixels that it covers."""

    def __init__(self):
        self.boxes: dict[str, np.ndarray] = {}  # (low, high) corners
        self.size = np.zeros(2)

    def require_legible(self) -> None:
        """No text is cut off, and no two overlap."""
        assert self.boxes
        for text, (low, high) in self.boxes.items():
            assert (low >= 0).all() and (high <= self.size).all(), text
        for (one, a), (other, b) in itertools.combinations(self.boxes.items(), 2):
            assert (np.maximum(a[0], b[0]) >= np.minimum(a[1], b[1])).any(), (one, other)


@pytest.fixture
def texts(monkeypatch):
    """All texts as they are drawn; one that is drawn twice in a place counts once."""
    seen = Texts()
    draw = Text.draw

    def recorded(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            box = Text.get_window_extent(self, renderer).get_points()
            seen.boxes[f"{self.get_text()} at {box.round()}"] = box
            seen.size = np.array(self.get_figure(root=True).bbox.size)
        draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", recorded)
    return seen
