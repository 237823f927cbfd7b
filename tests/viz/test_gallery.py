"""The page of topologies: its Python runs, and its costs and pictures are those that it gives."""

import pathlib
import re

from roam_jax.canvas.topologies import TOPOLOGIES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "topology.md"


def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    text = PAGE.read_text()
    declared, gallery, reach, slices, plan = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(declared + gallery + reach + slices + plan, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(TOPOLOGIES) + 1
    for line in printed:
        assert f"`{line}`" in text
    assert list(names["gallery"]) == list(TOPOLOGIES)
    for name in TOPOLOGIES:
        assert f"### {name}\n" in text and f"(images/topology_{name}.png)" in text
    for path in tmp_path.glob("*.png"):
        assert (PAGE.parent / "images" / path.name).is_file()
    assert len(list(tmp_path.glob("*.png"))) == len(TOPOLOGIES) + 2
    # What a comment gives is what its expression is.
    form = r"^((?:reachable|influence_path)\(.*\))\s+# (False|True|\(.*\))"
    calls = re.findall(form, reach, re.M)
    assert len(calls) == 4
    for call, answer in calls:
        assert eval(call, names) == eval(answer)
