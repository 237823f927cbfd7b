"""One table of several seeds: means and Student's intervals, from folders and from numbers."""

import json

import numpy as np
import pytest
import scipy.stats

from roam_jax.evaluate.run import evaluate_workdir
from roam_jax.evaluate.seeds import (
    common_step,
    estimate_seeds,
    evaluate_folder,
    format_seeds,
    metric_rows,
    seed_folders,
    seeds_report,
)
from roam_jax.tasks.build import build
from tests.evaluate.conftest import write_run
from tests.evaluate.test_canvas import make_config, random_params

SEEDS = (0, 3)


def test_student_interval_of_seeds():
    values = [0.5, 0.75, 0.625, 1.0]
    found = estimate_seeds(values)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values))
    np.testing.assert_allclose(found.interval, theirs)
    assert estimate_seeds([0.5]).interval is None


def test_reports_become_one():
    def report(mean, share):
        error = {"mean": mean, "interval": [0.0, 1.0]}
        return {"step": 5, "splits": {"val": {"error": error, "rows": [[share]], "name": "x"}}}

    merged = seeds_report({0: report(1.0, 0.25), 3: report(2.0, 0.75)})
    assert merged["seeds"] == [0, 3] and merged["step"] == 5
    val = merged["splits"]["val"]
    assert val["rows"] == [[0.5]] and val["name"] == "x"
    assert val["error"]["mean"] == 1.5 and val["error"]["values"] == [1.0, 2.0]
    assert val["error"]["interval"] == list(estimate_seeds([1.0, 2.0]).interval)
    alone = seeds_report({3: report(1.0, 0.25)})
    assert alone["splits"]["val"]["error"]["interval"] == [0.0, 1.0]


def write_seeds(path, *, steps=(2, 4)):
    """A folder as `train.py --seeds` leaves it, with random weights and one predicted region."""
    rows = []
    for seed in SEEDS:
        config = make_config(canvas__predict=("answer",))
        config.seed = seed
        experiment = build(config)
        params = random_params(experiment, seed=seed)
        write_run(path / "seeds" / str(seed), experiment, params, scales=dict.fromkeys(steps, 1.0))
        rows += [{"seed": seed, "step": step, "loss": 1.0 / step + seed} for step in (1, 2, 4)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("runs") / "seeds_run")


def test_a_folder_of_seeds(folder):
    path = evaluate_folder(folder, rounds=(2,))
    assert path == folder / "eval" / "4_seeds.json"
    report = json.loads(path.read_text())
    assert report["seeds"] == list(SEEDS)
    alone = []
    for seed, where in seed_folders(folder).items():
        # As one evaluates the seed alone.
        own = json.loads((where / "eval" / "4.json").read_text())
        if seed == SEEDS[0]:
            again = json.loads(evaluate_workdir(where, rounds=(2,)).read_text())
            assert again == own
        alone.append(own["splits"]["val"]["rounds"]["2"]["regions"]["answer"]["error"]["mean"])
    found = report["splits"]["val"]["rounds"]["2"]["regions"]["answer"]["error"]
    assert found["values"] == alone and alone[0] != alone[1]
    assert found["mean"] == pytest.approx(np.mean(alone))
    text = format_seeds(report)
    assert text.startswith("step 4, mean of 2 seed(s) (0, 3); intervals are over seeds")
    assert f"{found['mean']:.4f} [{found['interval'][0]:.4f}" in text
    names = {file.name for file in path.parent.glob("*.png")}
    assert names == {f"4_seeds_{what}.png" for what in ("curves", "exits", "rounds")}


def test_steps_in_common(folder, tmp_path):
    folders = seed_folders(folder)
    assert list(folders) == list(SEEDS) and seed_folders(tmp_path) == {}
    assert common_step(folders, None) == 4 and common_step(folders, 2) == 2
    with pytest.raises(FileNotFoundError, match=r"no step 3 of every seed .saved: seed 0: \[2, 4"):
        common_step(folders, 3)


def test_seeds_of_different_configs_are_refused(folder):
    path = seed_folders(folder)[3] / "config.json"
    before = path.read_text()
    saved = json.loads(before)
    saved["config"]["optim"]["lr"] = 0.5
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="seeds 0 and 3 are not of one config: optim.lr: 0.001"):
        evaluate_folder(folder)
    path.write_text(before)


def test_the_rows_of_a_seed(folder, tmp_path):
    rows = metric_rows(folder / "seeds" / "3", 3)
    assert [(row["seed"], row["step"], row["loss"]) for row in rows] == [
        (3, 1, 4.0), (3, 2, 3.5), (3, 4, 3.25),
    ]  # fmt: skip
    # What it did alone lies in its own folder.
    own = tmp_path / "seeds" / "3"
    own.mkdir(parents=True)
    assert metric_rows(own, 3) == []
    (own / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    assert metric_rows(own, 3) == [{"step": 5, "loss": 1.0}]
