from __future__ import annotations

import itertools
import json
import logging
import signal

import jax
import numpy as np
import pytest

from roam_jax.train import hosts, load, loop, names, sharding
from roam_jax.train.journal import read_lines
from roam_jax.train.metrics import read_metrics
from roam_jax.train.workdir import Workdir
from tests.train import toy


def run(workdir, *, task=None, batches=None, rounds=2, **changes):
    keywords = {name: changes.pop(name) for name in ("provenance", "evaluate") if name in changes}
    return loop.run(
        task or toy.make_task(),
        batches or toy.ToyBatches(),
        config=toy.make_config(**changes),
        workdir=workdir,
        rounds=rounds,
        rules=toy.RULES,
        **keywords,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, state, evaluations) of a whole run, evaluated every 5 of its 12 steps."""
    path = tmp_path_factory.mktemp("run")
    seen = {}

    def evaluate(params, step):
        seen[step] = jax.tree.map(np.asarray, params)
        return {"error": step / 2}

    state = run(path, evaluate=evaluate, eval_every=5, log_every=4, provenance={"git": "abc"})
    return Workdir(path), state, seen


def test_workdir_of_a_run(finished):
    folder, state, _ = finished
    assert int(state.step) == 12
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["12", "8"]
    assert folder.read()[1] == {"git": "abc"}
    assert any(folder.tensorboard.iterdir())


def test_metrics_of_a_run(finished):
    rows = read_metrics(finished[0].metrics_file)
    assert [row["step"] for row in rows] == [1, 4, 5, 8, 10, 12]
    keys = {"step", "rounds", "loss", "loss/mean_error", "lr", "refused"}
    keys |= {"seconds_per_step", "seconds_waiting", "steps_per_second", "examples_per_second"}
    keys |= {"memory_bytes", "peak_memory_bytes", "grad_norm"}
    norms = ("grad_norm", "param_norm", "update_norm")
    keys |= {f"{norm}/{group}" for norm in norms for group in ("head", "hidden")}
    assert {row["rounds"] for row in rows} == {2}
    for row in rows:
        evaluated = row["step"] in (5, 10, 12)
        more = {"eval/error"} if evaluated else {"compile_seconds"} if row["step"] == 1 else set()
        assert set(row) == keys | more
        assert list(row)[:3] == ["step", "rounds", "loss"]
        assert 0 <= row["seconds_waiting"] <= row["seconds_per_step"]
        if evaluated:
            assert row["eval/error"] == row["step"] / 2
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


def test_evaluation_sees_the_merged_parameters_of_its_step(finished):
    folder, state, seen = finished
    assert list(seen) == [5, 10, 12]
    params = names.flatten(seen[12])
    assert {name: leaf.shape for name, leaf in params.items()} == toy.SHAPES
    for name, leaf in names.flatten(state.trainable).items():
        np.testing.assert_array_equal(params[name], leaf)
    # What is loaded for evaluation is the same, frozen parameters included.
    mesh = sharding.make_mesh(8, 1)
    arguments = {"mesh": mesh, "rules": toy.RULES, "seed": toy.make_config().seed}
    loaded, step = load.load_params(toy.make_task(), folder.checkpoints, **arguments)
    assert step == 12
    jax.tree.map(np.testing.assert_array_equal, loaded, seen[12])


def test_the_best_evaluated_step_is_kept(tmp_path):
    errors = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 5.0, 12: 6.0}
    changes = {"eval_every": 2, "save_every": 0, "keep": 1, "keep_best": 1}
    run(tmp_path, evaluate=lambda params, step: {"error": errors[step]}, **changes)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"4", "12"}


def test_a_metric_that_no_evaluation_finds_is_refused(tmp_path):
    changes = {"eval_every": 2, "keep_best": 1, "best_metric": "eval/eror"}
    message = "train.best_metric = 'eval/eror' .* did you mean 'eval/error'"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, evaluate=lambda params, step: {"error": 1.0}, **changes)


def test_the_first_line_of_a_resumed_run_says_what_compiling_took(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, batches=toy.ToyBatches({10: lambda: 1 / 0}))
    run(tmp_path, save_every=1, log_every=12)  # saved ahead of the line
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "compile_seconds" in row] == [1, 12]


def test_a_signal_within_the_last_step_leaves_a_finished_run(tmp_path, monkeypatch):
    asked = itertools.count()
    monkeypatch.setattr(hosts, "agree", lambda _: signal.SIGTERM if next(asked) == 12 else 0)
    assert int(run(tmp_path).step) == 12
    assert next(asked) == 13
    assert read_lines(tmp_path / "journal.jsonl")[-1]["event"] == "finished"


def test_only_trainable_names_change(finished):
    seen = {step: names.flatten(params) for step, params in finished[2].items()}
    changed = {name for name in toy.SHAPES if np.any(seen[5][name] != seen[12][name])}
    assert changed == {"hidden/bias", "head/kernel", "head/bias"}


def test_a_finished_run_is_returned_as_it_is(finished):
    folder, state, _ = finished
    before = folder.metrics_file.read_text()
    again = run(folder.path, eval_every=5, log_every=4)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert folder.metrics_file.read_text() == before


def test_any_mesh_trains_the_same(finished, tmp_path):
    expected = {row["step"]: row["loss"] for row in read_metrics(finished[0].metrics_file)}
    run(tmp_path, mesh=(2, 4), log_every=4)
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        np.testing.assert_allclose(row["loss"], expected[row["step"]], atol=1e-5, rtol=0)


def test_nothing_compiles_after_the_first_step(tmp_path):
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    counts = {}
    before = {k: lambda k=k: counts.__setitem__(k, len(compiled)) for k in range(12)}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, batches=toy.ToyBatches(before), save_every=0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0  # the listener works
    assert counts[1] == counts[11]


def test_compiling_is_announced(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, steps=3)
    lines = [record.getMessage() for record in caplog.records]
    start = lines.index("compiling the training step (rounds = 2)")
    assert lines[start + 1].startswith("compiled in ")


def test_a_refused_update_changes_nothing_but_the_step(tmp_path):
    state = run(tmp_path, batches=toy.ToyBatches(poison=(6,)), save_every=6)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["refused"]] == [7]
    assert rows[6]["loss"] is None  # JSON has no NaN
    assert int(state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))
    (incident,) = read_lines(tmp_path / "incidents.jsonl")
    assert (incident["step"], incident["done"], incident["loss"]) == (7, "refused", "nan")


def test_refused_updates_in_a_row_roll_back(tmp_path):
    """From the checkpoint of step 4, on with the data that follows the bad batches."""
    bad = (6, 7, 8)
    state = run(tmp_path / "bad", batches=toy.ToyBatches(poison=bad))
    expected = run(tmp_path / "skipped", batches=toy.ToyBatches(skipped=(4, 5, *bad)))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    found, wanted = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("bad", "skipped"))
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["loss"] for row in found] == [row["loss"] for row in wanted]
    done = [i["done"] for i in read_lines(tmp_path / "bad" / "incidents.jsonl")]
    assert done == ["refused", "refused", "roll back"]


def test_a_save_that_falls_on_a_refused_update_is_made_up_for(tmp_path):
    run(tmp_path, batches=toy.ToyBatches(poison=(3,)), steps=6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "6"]


def test_refused_before_the_first_checkpoint(tmp_path):
    state = run(tmp_path / "bad", batches=toy.ToyBatches(poison=(1, 2)), refusals=2)
    expected = run(tmp_path / "skipped", batches=toy.ToyBatches(skipped=(0, 1, 2)))
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_it_stops_after_so_many_returns(tmp_path):
    with pytest.raises(FloatingPointError, match="after 2 returns to a checkpoint"):
        run(tmp_path, batches=toy.ToyBatches(poison=range(6, 100)))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")][:4] == [1, 2, 3, 4]
    assert len(read_lines(tmp_path / "incidents.jsonl")) == 9
    # With good data the run goes on.
    assert int(run(tmp_path).step) == 12


def test_batches_that_end(tmp_path):
    class Short(toy.ToyBatches):
        def __next__(self):
            if self.position == 2:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="the batches ended after 2 steps"):
        run(tmp_path, batches=Short())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": (3, 2)}, "mesh.data = 3, mesh.fsdp = 2"),
        ({"steps": 0}, "train.steps = 0: expected 1 or more"),
        ({"keep": 0}, "train.keep = 0: expected 1 or more"),
        ({"keep_best": 1}, "train.keep_best = 1 by .*'eval/error' with train.eval_every = 0"),
        ({"task": toy.make_task(trainable=("nothing",))}, "no parameter matches 'nothing'"),
        ({"task": toy.make_task(pretrained=lambda: {"x": np.zeros(1)})}, r"x \(1,\) is unexpected"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config(finished):
    with pytest.raises(ValueError, match=r"another config: train\.steps: 12 -> 13"):
        run(finished[0].path, steps=13)


def test_a_checkpoint_of_another_config(tmp_path):
    run(tmp_path, steps=3)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["config"]["train"]["steps"] = 4
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"checkpoint of step 3 .* train\.steps: 3 -> 4"):
        run(tmp_path, steps=4)
