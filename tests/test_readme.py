"""The README's Python runs as it stands."""

import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_quick_start(monkeypatch, capsys):
    code = re.search(r"## From Python\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    names: dict = {}
    # One device, as a newcomer has; the suite's eight would need a batch of eight.
    monkeypatch.setattr(jax, "devices", lambda *_: [jax.local_devices()[0]])
    exec(compile(code.group(1), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "loss/diffusion" in printed and "loss/action" in printed
    assert names["gradient"].shape == (names["experiment"].model.module.config.num_layers, 3)
    assert float(abs(names["gradient"]).max()) > 0
