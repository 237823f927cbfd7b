"""The page of a report: what stands in it, and what a browser shows."""

from __future__ import annotations

import html.parser
import json
import pathlib

import numpy as np
import pytest
import scipy.stats

from roam_jax.__main__ import main
from roam_jax.evaluate import run_report
from roam_jax.evaluate.run_report import write_report
from tests.evaluate.workdirs import loss, write_evaluation, write_run, write_seeds
from tests.viz import browser as browsers

# Within a script, both would move its end.
MARKUP = "</script><!--<script>"


class Read(html.parser.HTMLParser):
    """Tables, texts, addresses and data of a page; refuses elements that are not closed."""

    EMPTY = ("meta", "link", "img", "input")

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.open, self.tables, self.text, self.addresses, self.data = [], [], "", [], {}
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and data.startswith('{"groups"'):
            self.data = json.loads(data)
        elif self.open[-1:] == ["td"] or self.open[-1:] == ["th"]:
            self.tables[-1][-1][-1] += data
        elif self.open[-1:] not in (["script"], ["style"]):
            self.text += data

    def table(self, first):
        """The rows of the table whose header begins so."""
        return next(rows for rows in self.tables if rows[0][0] == first)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three seeds with what happened to them, and one run of another learning rate."""
    root = tmp_path_factory.mktemp("runs")
    toy = write_seeds(root / "toy", (0, 1, 2))
    for seed in (0, 1, 2):
        write_evaluation(toy / "seeds" / str(seed), psnr=20.0 + seed, media=seed == 0)
    other = write_run(root / "other <b>&", lr=0.01, last=30)
    write_evaluation(other, step=20, psnr=30.0)
    write_evaluation(other, psnr=31.0)
    incident = {"time": 1e9, "step": 6, "done": "refused", "reason": "spike", "loss": 9.5}
    (other / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    stop = {"time": 1e9 + 60, "event": f"stopped {MARKUP}", "step": 8, "signal": "SIGTERM"}
    (other / "journal.jsonl").write_text(json.dumps(stop) + "\n")
    return [toy, other]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    write_report(folders, out, all_steps=False)
    return out


def test_runs_and_how_far_they_are(page):
    header, *rows = Read(page).table("run")
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(r["run"], r["seed"]) for r in found[:3]] == [("toy", str(s)) for s in (0, 1, 2)]
    # The checkpoint says that 40 steps are done, the metrics 30.
    assert {(r["steps"], r["of"], r["state"]) for r in found} == {("40", "40", "finished")}
    assert "MFU" not in header
    assert found[1]["loss"] == f"{loss(40, 1):.4g}"


def test_config_differences(page):
    assert Read(page).table("leaf") == [
        ["leaf", "toy", "other <b>&"],
        ["optim.lr", "0.001", "0.01"],
    ]


def test_the_data_of_the_curves_are_the_metrics(page):
    toy, other = Read(page).data["groups"]
    assert [run["seed"] for run in toy["runs"]] == [0, 1, 2]
    run = toy["runs"][2]
    assert run["steps"] == list(range(2, 41, 2))
    np.testing.assert_allclose(
        run["metrics"]["loss"], [loss(s, 2) for s in run["steps"]], rtol=1e-5
    )
    assert run["metrics"]["loss/bucket"][:3] == [2.0, None, 6.0]
    assert len(other["runs"][0]["steps"]) == 15
    assert [event["text"] for event in other["events"]] == [
        "seed 0, step 6: refused, spike",
        f"seed 0, step 8: stopped {MARKUP}",
    ]
    assert "<!--" not in page.read_text()


def test_long_runs_are_thinned_and_it_says_so(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "MOST_LINES", 7)
    write_report(folders, tmp_path / "r.html", all_steps=False)
    found = Read(tmp_path / "r.html")
    assert found.data["groups"][0]["runs"][0]["steps"] == [2, 8, 14, 20, 26, 32, 38, 40]
    assert "up to 20 lines of metrics: one of 3 is drawn" in found.text


def test_figures_side_by_side(page):
    rows = {row[0]: row[1:] for row in Read(page).table("figure")}
    reach = scipy.stats.t.ppf(0.975, 2) / 3**0.5
    assert rows["val / psnr"] == [f"21 [{21 - reach:.4g}, {21 + reach:.4g}]", "31 [30, 32]"]
    assert rows["val / windows"] == ["4", "4"]


def test_tables_of_evaluations_are_those_of_the_command(page):
    text = Read(page).text
    assert "step 40\n\nval: 4 windows of 2 episodes" in text
    assert "PSNR               31.0000 [30.0000, 32.0000] dB" in text
    assert "30.0000 [29.0000, 31.0000] dB" not in text


def test_all_steps_if_asked_for(folders, tmp_path):
    write_report(folders, tmp_path / "r.html", all_steps=True)
    assert "30.0000 [29.0000, 31.0000] dB" in Read(tmp_path / "r.html").text


def test_what_happened(page):
    header, *rows = next(rows for rows in Read(page).tables if "what" in rows[0])
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(r["what"], r["step"], r["loss"], r["more"]) for r in found] == [
        ("refused, spike", "6", "9.5", ""),
        (f"stopped {MARKUP}", "8", "", "signal: SIGTERM"),
    ]
    assert found[0]["time (UTC)"] == "2001-09-09 01:46:40"


def test_the_page_needs_no_other_file(page):
    addresses = Read(page).addresses
    kinds = sorted(address[:15] for address in addresses)
    assert kinds == ["data:,", "data:image/png;", "data:video/mp4;"]


def test_runs_without_a_line_yet(tmp_path):
    write_run(tmp_path / "begun", last=0)
    write_report([tmp_path / "begun"], tmp_path / "r.html", all_steps=False)
    found = Read(tmp_path / "r.html")
    assert "no line of metrics yet" in found.text and found.data == {}


def test_a_report_of_another_layout_is_shown_as_plain_figures(tmp_path):
    folder = write_run(tmp_path / "old")
    write_evaluation(folder)
    path = folder / "eval" / "40.json"
    report = json.loads(path.read_text())
    report["splits"] = {"val": {"windows": 4, "episodes": 2, "quality": {"db": 12.5}}}
    path.write_text(json.dumps(report))
    write_report([folder], tmp_path / "r.html", all_steps=False)
    line = next(s for s in Read(tmp_path / "r.html").text.split("\n") if "val / quality / db" in s)
    assert line.split()[-1] == "12.5"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"40\.json: no report of an evaluation"):
        write_report([folder], tmp_path / "r.html", all_steps=False)


def test_the_command(folders, tmp_path, capsys):
    main(["report", *map(str, folders), "--out", str(tmp_path / "r.html")])
    printed = capsys.readouterr().out
    assert "runs:   toy: seeds 0, 1, 2" in printed
    assert f"report: {tmp_path / 'r.html'}" in printed
    with pytest.raises(ValueError, match=r"--out .*r\.txt: expected a file that ends in \.html"):
        main(["report", str(folders[0]), "--out", str(tmp_path / "r.txt")])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        main(["report", str(tmp_path / "none"), "--out", str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()


@pytest.fixture(scope="module")
def shown(page):
    """The page in a browser."""
    program = browsers.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browsers.NAMES)}, and CHROME is not set")
    with browsers.browser(program) as found:
        found.open(page)
        yield found


PANEL = "document.querySelector('[data-metric=\"loss\"]')"


def hover(shown, share):
    """What the panel of the loss tells at a share of its width, from its tooltip."""
    shown.run(f"{PANEL}.scrollIntoView({{block: 'center'}})")
    left, top, width, height = shown.run(
        f"(() => {{const r = {PANEL}.querySelector('svg').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height]})()"
    )
    shown.move(left + share * width, top + height / 2)
    return shown.run(f"{PANEL}.querySelector('.tip').innerText").split("\n")


def choose(shown, name, value):
    event = "change" if name == "band" else "input"
    shown.run(
        f"(() => {{const e = document.getElementById('{name}'); e.value = '{value}';"
        f"e.dispatchEvent(new Event('{event}'))}})()"
    )


def paths(shown, kind="path.curve"):
    return shown.run(f"[...{PANEL}.querySelectorAll('{kind}')].map(p => p.getAttribute('d'))")


def test_a_browser_has_nothing_to_complain_and_asks_for_nothing(shown, page):
    assert shown.run("document.querySelectorAll('.chart').length") == 5
    assert shown.run("[...document.images].every(i => i.naturalWidth > 0)")
    assert shown.problems == []
    assert shown.requests == [page.as_uri()]


def test_a_video_can_be_played(shown):
    script = (
        "new Promise(done => {const v = document.querySelector('video');"
        "v.onerror = () => done(v.error.message); v.oncanplay = () => done(v.videoWidth);"
        "v.load()})"
    )
    shown.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert shown.run(script) == 32


def test_bands_are_of_seeds(shown):
    assert len(paths(shown)) == 2 and len(paths(shown, "path.band")) == 1
    assert len(paths(shown, "path.event")) == 2
    step, toy, other = hover(shown, 0.98)
    assert step == "step 40"
    low, middle, high = (loss(40, seed) for seed in (0, 1, 2))
    assert toy == f"toy: {middle:.4g} ({low:.4g} to {high:.4g}, 3 seeds)"
    assert other == f"other <b>&: {loss(30, 0, 0.01):.4g} at step 30"


def test_intervals_and_single_seeds_if_asked_for(shown):
    choose(shown, "band", "interval")
    mean, reach = loss(40, 1), scipy.stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    expected = f"toy: {mean:.4g} ({mean - reach:.4g} to {mean + reach:.4g}, 3 seeds)"
    found = hover(shown, 0.98)[1]
    assert found.replace("e-", "E-").split()[:2] == expected.split()[:2]
    numbers = [float(word.strip("(,")) for word in (found.split()[2], found.split()[4])]
    np.testing.assert_allclose(numbers, [mean - reach, mean + reach], rtol=2e-3)
    choose(shown, "band", "seeds")
    assert len(paths(shown)) == 4 and not paths(shown, "path.band")
    choose(shown, "band", "range")


def test_smoothing_is_an_average_without_its_start(shown):
    choose(shown, "smooth", "0.5")
    values = [loss(step, 1) for step in range(2, 41, 2)]
    weights = 0.5 ** np.arange(len(values))[::-1]
    expected = float(np.average(values, weights=weights))
    assert hover(shown, 0.98)[1].startswith(f"toy: {expected:.4g} (")
    choose(shown, "smooth", "0")


def test_a_logarithmic_axis(shown):
    before = paths(shown)
    shown.run("document.getElementById('log').click()")
    assert paths(shown) != before and not any("NaN" in path for path in paths(shown))
    # The height of a value in the middle of the range, by hand: first and last point of a curve.
    low = min(loss(30, 0, 0.01), loss(40, 0))
    high = loss(2, 2)
    foot, top = 230 - 24, 8
    share = (np.log(loss(2, 1)) - np.log(low)) / (np.log(high) - np.log(low))
    first = float(paths(shown)[0].split("L")[0].split()[1])
    np.testing.assert_allclose(first, foot - share * (foot - top), atol=0.2)
    shown.run("document.getElementById('log').click()")
    assert paths(shown) == before


def test_groups_are_hidden_and_shown(shown):
    button = "document.querySelectorAll('.legend button')[0]"
    before = paths(shown)
    shown.run(f"{button}.click()")
    assert len(paths(shown)) == 1
    assert shown.run(f"{button}.getAttribute('aria-pressed')") == "false"
    shown.run(f"{button}.click()")
    assert paths(shown) == before


def test_light_and_dark(shown):
    def background():
        return shown.run("getComputedStyle(document.body).backgroundColor")

    shown.scheme("light")
    light = background()
    shown.scheme("dark")
    dark = background()
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(21, 23, 27)")
    shown.run("document.getElementById('theme').click()")
    assert background() == light
    shown.run("document.getElementById('theme').click()")
    assert background() == dark
    assert shown.problems == []
