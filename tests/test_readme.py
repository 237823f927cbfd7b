"""The README's Python runs as it stands, and every link of the pages leads somewhere."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "NOTICE.md", *(ROOT / "docs").glob("*.md")]


def test_quick_start(monkeypatch, capsys):
    code = re.search(r"## From Python\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    # One device, as a newcomer has; the suite's eight would need a batch of eight.
    monkeypatch.setattr(jax, "devices", lambda *_: [jax.local_devices()[0]])
    names: dict = {}
    exec(compile(code.group(1), "README.md", "exec"), names)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[1] < losses[0]
    assert float(abs(names["grads"]["blocks"]["loop"]["gate"]).max()) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
