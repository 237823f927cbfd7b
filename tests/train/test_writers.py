"""TensorBoard and Weights & Biases; the latter as a module that only notes what it is told."""

from __future__ import annotations

import errno
import json
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roam_jax.train import writers
from roam_jax.train.metrics import MetricsLog
from roam_jax.train.workdir import Workdir

FULL_DISK = "/dev/full"


class FakeRun:
    def __init__(self, options):
        self.options, self.lines, self.finished = options, [], False

    def log(self, values, *, step):
        assert not self.finished
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


class FakeWandb(types.ModuleType):
    class Error(Exception):
        pass

    def __init__(self, refuses=()):
        super().__init__("wandb")
        self.runs, self.refuses = [], refuses

    def init(self, **options):
        for option in self.refuses:
            if option in options:
                raise self.Error(f"no {option} here")
        self.runs.append(FakeRun(options))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def config(project="arms"):
    return ConfigDict({"seed": 3, "optim": {"lr": 0.1}, "train": {"wandb": project}})


def opened(path, *, last_step=0, **kwargs):
    path.mkdir(parents=True, exist_ok=True)
    return writers.WeightsAndBiases(Workdir(path), config(**kwargs), last_step=last_step)


def test_a_run_gets_config_name_and_numbers(tmp_path, wandb):
    log = opened(tmp_path / "mine")
    log.write(1, {"loss": 0.5, "loss/bucket": float("nan")})
    log.write(3, {"loss": 0.25})
    log.close()
    (run,) = wandb.runs
    assert run.options["project"] == "arms"
    assert run.options["name"] == "mine"
    assert run.options["config"] == {"seed": 3, "optim": {"lr": 0.1}, "train": {"wandb": "arms"}}
    assert run.lines == [(1, {"loss": 0.5}), (3, {"loss": 0.25})]
    assert run.finished


def test_a_resumed_run_goes_on_in_the_same_one_rewound(tmp_path, wandb):
    opened(tmp_path).close()
    opened(tmp_path, last_step=20).close()
    first, second = wandb.runs
    assert second.options["id"] == first.options["id"]
    assert second.options["resume_from"] == f"{first.options['id']}?_step=20"
    assert "resume_from" not in first.options
    assert json.loads((tmp_path / "wandb.json").read_text()) == {
        "project": "arms",
        "id": first.options["id"],
    }


def test_a_run_that_goes_back_is_rewound(tmp_path, wandb):
    log = opened(tmp_path)
    log.write(5, {"loss": 1.0})
    log.rewind(2)
    log.write(3, {"loss": 2.0})
    first, second = wandb.runs
    assert first.finished
    assert second.options["resume_from"] == f"{first.options['id']}?_step=2"
    assert second.lines == [(3, {"loss": 2.0})]


def test_the_folder_that_it_leaves_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match=r"wandb is not installed"):
        writers.require_wandb("arms")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


@pytest.mark.parametrize("change", [{"last_step": 0}, {"last_step": 9, "project": "legs"}])
def test_another_run_begins_from_the_start_and_in_another_project(tmp_path, wandb, change):
    opened(tmp_path).close()
    opened(tmp_path, **change).close()
    first, second = wandb.runs
    assert second.options["id"] != first.options["id"]
    assert "resume_from" not in second.options


def test_a_service_that_does_not_rewind_goes_on_with_a_warning(tmp_path, wandb, caplog):
    opened(tmp_path).close()
    wandb.refuses = ("resume_from",)
    opened(tmp_path, last_step=20).close()
    first, second = wandb.runs
    assert second.options["id"] == first.options["id"]
    assert second.options["resume"] == "allow"
    assert "did not rewind" in caplog.text and "no resume_from here" in caplog.text


def test_a_service_that_refuses_is_one_message(tmp_path, wandb):
    wandb.refuses = ("project",)
    with pytest.raises(ValueError, match=r"train\.wandb = 'arms'.*no project here.*wandb login"):
        opened(tmp_path)


def test_seeds_are_a_group_of_runs_at_once(tmp_path, wandb):
    for seed in (0, 1):
        opened(tmp_path / "toy" / "seeds" / str(seed))
    assert [run.options["name"] for run in wandb.runs] == ["toy, seed 0", "toy, seed 1"]
    assert {run.options["group"] for run in wandb.runs} == {"toy"}
    assert {run.options["reinit"] for run in wandb.runs} == {"create_new"}
    assert len({run.options["id"] for run in wandb.runs}) == 2


def test_a_damaged_id_is_named(tmp_path, wandb):
    opened(tmp_path)
    (tmp_path / "wandb.json").write_text('{"project"')
    with pytest.raises(ValueError, match=r"wandb\.json: expected .* remove it"):
        opened(tmp_path, last_step=4)


def test_a_missing_package_is_named_ahead_of_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"train\.wandb = 'arms'.*pip install wandb"):
        writers.require_wandb("arms")
    writers.require_wandb("")


def test_wandb_is_imported_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for writer in writers.open_writers(Workdir(tmp_path), config(project=""), last_step=0):
        assert isinstance(writer, writers.TensorBoard)
        writer.close()


def test_both_writers_are_opened(tmp_path, wandb):
    found = writers.open_writers(Workdir(tmp_path), config(), last_step=0)
    assert [type(writer) for writer in found] == [writers.TensorBoard, writers.WeightsAndBiases]
    for writer in found:
        assert isinstance(writer, writers.Writer)
        writer.write(1, {"loss": 0.5})
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.5]
    assert wandb.runs[0].lines == [(1, {"loss": 0.5})]


def test_names_with_bars_and_numbers_without_value(tmp_path):
    board = writers.TensorBoard(tmp_path, last_step=0)
    board.write(1, {"loss/a|b": 2.0, "loss/empty": float("nan")})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("loss/a_b")[0].value == 2.0
    assert np.isnan(events.Scalars("loss/empty")[0].value)


def test_a_full_disk_is_named_and_the_other_writers_are_closed(tmp_path, wandb):
    path = tmp_path / "metrics.jsonl"
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{path}'"),
        MetricsLog(path, {None: [opened(tmp_path)]}, last_step=0) as log,
    ):
        log._file.close()
        log._file = open(FULL_DISK, "a")  # noqa: SIM115, kept by the log
        log.write(1, {"loss": 1.0})
    assert wandb.runs[0].finished and not wandb.runs[0].lines


def test_a_full_disk_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    from tensorboardX import record_writer

    board = writers.TensorBoard(tmp_path, last_step=0)
    full = open(FULL_DISK, "wb")  # noqa: SIM115, kept by the writer
    monkeypatch.setattr(board._file._py_recordio_writer, "_writer", full)
    assert isinstance(board._file._py_recordio_writer, record_writer.RecordWriter)
    with pytest.raises(OSError) as found:
        for step in range(1, 1000):
            board.write(step, {"loss": 1.0})
    assert found.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        full.close()
