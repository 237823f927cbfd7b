from __future__ import annotations

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roam_jax.train.metrics import MetricsLog, read_metrics


def write(tmp_path, steps, *, last_step=0):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, {None: tmp_path / "tensorboard"}, last_step=last_step) as log:
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
    with MetricsLog(path, {None: tmp_path / "tensorboard"}, last_step=0) as log:
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
        folders = {seed: tmp_path / str(seed) for seed in seeds}
        with MetricsLog(path, folders, last_step=last_step) as log:
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
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_metrics(path)


def test_a_metric_without_a_value_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, {None: tmp_path / "tensorboard"}, last_step=0) as log:
        log.write(1, {"loss": 1.0, "loss/bucket": float("nan")})
    assert read_metrics(path) == [{"step": 1, "loss": 1.0, "loss/bucket": None}]


def test_tensorboard_has_the_same_numbers(tmp_path):
    write(tmp_path, [1, 2, 3])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    np.testing.assert_allclose(found, [(s, 1 / s) for s in (1, 2, 3)], rtol=1e-6)
