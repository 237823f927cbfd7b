"""What a report reads of workdirs: whole ones, half-finished ones, and what is none."""

from __future__ import annotations

import json

import pytest

from roam_jax.evaluate.run_records import read_groups
from tests.evaluate.workdirs import write_config, write_evaluation, write_run, write_seeds


def test_a_run_alone(tmp_path):
    write_run(tmp_path / "mine")
    (group,) = read_groups([tmp_path / "mine"])
    (run,) = group.runs
    assert (group.name, run.seed, run.steps) == ("mine", 0, (40, 40))
    assert [row["step"] for row in run.rows] == list(range(2, 41, 2))
    assert [(saved.step, saved.size) for saved in run.checkpoints] == [(20, 2**20), (40, 2**20)]


def test_a_folder_of_seeds_is_one_group(tmp_path):
    write_seeds(tmp_path / "toy", (0, 2, 10))
    (group,) = read_groups([tmp_path / "toy"])
    assert [run.seed for run in group.runs] == [0, 2, 10]
    for run in group.runs:
        assert len(run.rows) == 20 and "seed" not in run.rows[0]
        assert run.rows[-1]["eval/psnr"] == 20 + run.seed


def test_runs_that_differ_in_seed_alone_are_put_together(tmp_path):
    folders = [write_run(tmp_path / f"run{seed}", seed=seed) for seed in (1, 0)]
    folders.append(write_run(tmp_path / "other", seed=2, lr=0.01))
    first, second = read_groups(folders)
    assert [run.seed for run in first.runs] == [0, 1]
    assert (first.name, second.name) == ("run1 and 1 more", "other")


@pytest.mark.parametrize("change", [{"seed": 0}, {"seed": 1, "fingerprint": "f"}])
def test_the_same_seed_or_other_data_are_not_put_together(tmp_path, change):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **change)
    assert len(read_groups([tmp_path / "a", tmp_path / "b"])) == 2


def test_what_changes_no_result_does_not_part_runs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    path = tmp_path / "b" / "config.json"
    saved = json.loads(path.read_text())
    saved["config"]["train"]["log_every"] = 7
    path.write_text(json.dumps(saved))
    assert len(read_groups([tmp_path / "a", tmp_path / "b"])) == 1


def test_names_are_as_short_as_they_differ(tmp_path):
    for parent in ("x", "y"):
        write_run(tmp_path / parent / "run", lr={"x": 0.1, "y": 0.2}[parent])
    groups = read_groups([tmp_path / "x" / "run", tmp_path / "y" / "run"])
    assert [group.name for group in groups] == ["x/run", "y/run"]


def test_a_run_that_has_just_begun_and_one_that_was_killed(tmp_path):
    write_config(tmp_path / "begun", lr=0.5)
    (tmp_path / "begun" / "checkpoints").rename(tmp_path / "unused")
    killed = write_run(tmp_path / "killed", last=22)
    text = (killed / "metrics.jsonl").read_text()
    (killed / "metrics.jsonl").write_text(text[:-9])
    (killed / "incidents.jsonl").write_text('{"step": 3, "done": "refused"}\n{"ste')
    begun, cut = read_groups([tmp_path / "begun", killed])
    assert (begun.runs[0].rows, begun.runs[0].steps) == ([], (0, 40))
    assert cut.runs[0].rows[-1]["step"] == 20
    assert cut.runs[0].incidents == [{"step": 3, "done": "refused"}]


def test_seeds_that_have_not_begun_are_left_out(tmp_path):
    write_seeds(tmp_path / "toy", (0, 1))
    (tmp_path / "toy" / "seeds" / "2").mkdir()
    (group,) = read_groups([tmp_path / "toy"])
    assert [run.seed for run in group.runs] == [0, 1]


def test_a_seed_read_alone_takes_its_lines_from_the_file_of_all(tmp_path):
    write_seeds(tmp_path / "toy", (0, 3))
    (group,) = read_groups([tmp_path / "toy" / "seeds" / "3"])
    assert {row["eval/psnr"] for row in group.runs[0].rows if "eval/psnr" in row} == {23.0}


def test_evaluations_by_step_and_kind(tmp_path):
    folder = write_run(tmp_path / "mine")
    for step in (40, 20):
        write_evaluation(folder, step=step)
    write_evaluation(folder, kind="_rollout", media=True)
    (folder / "eval" / "notes.txt").write_text("")
    (group,) = read_groups([folder])
    (run,) = group.runs
    assert [(one.step, one.kind) for one in run.reports] == [(20, ""), (40, ""), (40, "rollout")]
    assert [one.path.name for one in run.media] == ["40_val.mp4", "40_val_frames.png"]


def test_what_is_no_workdir_is_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        read_groups([tmp_path / "nothing"])
    write_run(tmp_path / "runs" / "a")
    write_seeds(tmp_path / "runs" / "toy", (0,))
    with pytest.raises(FileNotFoundError, match="no workdir.*it holds a, toy: expected these"):
        read_groups([tmp_path / "runs"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither config.json nor seeds/SEED$"):
        read_groups([tmp_path / "empty"])


def test_a_folder_twice_and_a_damaged_file(tmp_path):
    folder = write_run(tmp_path / "a")
    with pytest.raises(ValueError, match="expected different folders"):
        read_groups([folder, tmp_path / "b" / ".." / "a"])
    (folder / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_groups([folder])


def test_seeds_of_two_configs_in_one_folder_are_refused(tmp_path):
    write_seeds(tmp_path / "toy", (0,))
    write_config(tmp_path / "toy" / "seeds" / "1", seed=1, lr=0.5)
    with pytest.raises(ValueError, match=r"seeds 0 and 1 differ in optim\.lr"):
        read_groups([tmp_path / "toy"])
