from __future__ import annotations

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roam_jax.train.metrics import MetricsLog, read_metrics
from roam_jax.train.writers import TensorBoard


def tensorboard(folder, *, last_step=0):
    return [TensorBoard(folder, last_step=last_step)]


class Remembered:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.told = []

    def write(self, step, values):
        self.told.append((step, dict(values)))

    def rewind(self, last_step):
        self.told.append(("rewind", last_step))

    def close(self):
        self.told.append("close")


def write(tmp_path, steps, *, last_step=0):
    path = tmp_path / "metrics.jsonl"
    writers = {None: tensorboard(tmp_path / "tensorboard", last_step=last_step)}
    with MetricsLog(path, writers, last_step=last_step) as log:
        for step in steps:
            log.write(step, {"loss": 1 / step, "lr": 0.1})
    return path


def test_lines_are_json_objects_and_exact(tmp_path):
    path = write(tmp_path, [1, 2, 3])
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_metrics(path)
    assert read_metrics(path) == [{"step": s, "loss": 1 / s, "lr": 0.1} for s in (1, 2, 3)]


def test_float32_comes_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, {None: []}, last_step=0) as log:
        for step, value in enumerate(values):
            log.write(step, {"loss": float(value)})
    np.testing.assert_array_equal(np.float32([r["loss"] for r in read_metrics(path)]), values)


def test_resume_drops_later_lines_and_has_each_step_once(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5])
    path = write(tmp_path, [4, 6], last_step=3)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 6]


def test_seeds_share_a_file_and_resume_on_their_own(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(steps, seeds, *, last_step):
        writers = {seed: tensorboard(tmp_path / str(seed), last_step=last_step) for seed in seeds}
        with MetricsLog(path, writers, last_step=last_step) as log:
            for step in steps:
                for seed in seeds:
                    log.write(step, {"loss": seed / 10}, seed=seed)

    write([1, 2, 3], [4, 7], last_step=0)
    write([3], [7], last_step=2)
    assert list(read_metrics(path)[0]) == ["seed", "step", "loss"]
    found = [(row["seed"], row["step"]) for row in read_metrics(path)]
    assert found == [(4, 1), (7, 1), (4, 2), (7, 2), (4, 3), (7, 3)]
    events = EventAccumulator(str(tmp_path / "7"))
    events.Reload()
    assert events.Scalars("loss")[-1].step == 3
    np.testing.assert_allclose([event.value for event in events.Scalars("loss")], 0.7, rtol=1e-6)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_by_a_kill(tmp_path, cut):
    path = write(tmp_path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    path = write(tmp_path, [3], last_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    path = write(tmp_path, [1, 2, 3])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:9] + "\n" + lines[2])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object with a step"):
        read_metrics(path)
    for line in ('{"loss": 1.0}', "[1]"):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: .*with a step"):
            read_metrics(path)


def test_a_metric_without_a_value_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, {None: []}, last_step=0) as log:
        log.write(1, {"loss": 1.0, "loss/bucket": float("nan")})
    assert read_metrics(path) == [{"step": 1, "loss": 1.0, "loss/bucket": None}]


def test_tensorboard_has_the_same_numbers(tmp_path):
    write(tmp_path, [1, 2, 3])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    np.testing.assert_allclose(found, [(s, 1 / s) for s in (1, 2, 3)], rtol=1e-6)


def test_tensorboard_forgets_what_is_repeated(tmp_path):
    (board,) = tensorboard(tmp_path)
    for step in (1, 2, 3):
        board.write(step, {"loss": 1.0})
    board.rewind(1)
    board.write(2, {"loss": 7.0})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 7.0)]


def test_a_run_that_goes_back_has_each_step_once(tmp_path):
    path, writer = tmp_path / "metrics.jsonl", Remembered()
    with MetricsLog(path, {None: [writer]}, last_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0})
        log.rewind(1)
        log.write(2, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 2.0)]
    assert writer.told[-3:] == [("rewind", 1), (2, {"loss": 2.0}), "close"]


def test_seeds_go_back_without_others_that_share_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, {1: []}, last_step=0) as log:
        log.write(5, {"loss": 1.0}, seed=1)
    with MetricsLog(path, {2: []}, last_step=0) as log:
        log.write(5, {"loss": 2.0}, seed=2)
        log.rewind(4)
    assert [row["seed"] for row in read_metrics(path)] == [1]


def test_every_writer_gets_the_lines_of_its_seed(tmp_path):
    writers = {seed: [Remembered(), Remembered()] for seed in (4, 7)}
    with MetricsLog(tmp_path / "metrics.jsonl", writers, last_step=0) as log:
        log.write(1, {"loss": 4.0}, seed=4)
        log.write(1, {"loss": 7.0}, seed=7)
    for seed, pair in writers.items():
        for writer in pair:
            assert writer.told == [(1, {"loss": float(seed)}), "close"]


def test_other_processes_of_a_cluster_write_nothing(tmp_path):
    with MetricsLog(None, {}, last_step=0) as log:
        log.write(1, {"loss": 1.0})
        log.rewind(0)
    assert list(tmp_path.iterdir()) == []
