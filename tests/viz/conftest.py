"""What was drawn, read back from the figures."""

import pytest
from matplotlib.figure import Figure


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
