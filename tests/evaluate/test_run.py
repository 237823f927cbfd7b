"""From a workdir alone to a report: what is written, and what is refused."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from roam_jax.cli.arguments import override
from roam_jax.evaluate import run as run_module
from roam_jax.evaluate.run import (
    evaluate_experiment,
    evaluate_workdir,
    format_report,
    make_evaluation,
)
from roam_jax.tasks.build import build
from tests.evaluate.conftest import write_toy
from tests.tiny_weights import write_weights


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))


@pytest.fixture
def seen(monkeypatch):
    """Replaces the measuring, which is tested elsewhere; holds the experiments that it was for."""
    experiments = []

    class Stub:
        def rounds(self, wanted):
            return wanted or (1, 2)

        def report(self, params, *, rounds):
            moved = params["blocks"]["loop"]["gate"]
            return {"val": {"gate": np.asarray(moved).tolist()}}

        def metrics(self, params):
            return {}

        def draw(self, params, splits, prefix, *, rounds):
            pass

    def make_evaluation(experiment, *, extrapolate):
        assert extrapolate in (None, "last")
        experiments.append(experiment)
        return Stub()

    monkeypatch.setattr(run_module, "make_evaluation", make_evaluation)
    monkeypatch.setattr(run_module, "ContinuationEvaluation", make_evaluation)
    return experiments


def with_overrides(*arguments):
    return functools.partial(override, arguments=[f"--config.{a}" for a in arguments])


def test_a_workdir_alone_gives_the_report_of_its_model(finished, report, experiment):
    # On all eight devices, in batches of eight windows; the expected report is of one device.
    path = evaluate_workdir(finished, rounds=(2,))
    assert path == finished / "eval" / "6.json"
    written = json.loads(path.read_text())
    assert (written["step"], written["task"], written["rounds"]) == (6, "graft", [2])
    assert written["trained_rounds"] == 2 and written["extrapolate"] is None
    assert written["overrides"] == {}
    assert written["fingerprints"] == dict(experiment.fingerprints)
    for found in written["splits"].values():
        assert found.pop("action_units")["yaw"] == "rad"
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5),
        written["splits"],
        {
            split: {
                **{name: found[name] for name in found if name != "action_units"},
                "rounds": {"2": found["rounds"]["2"]},
            }
            for split, found in report.items()
        },
    )
    pictures = {p.name for p in path.parent.iterdir()} - {"6.json"}
    assert pictures == {"6_video.png"} | {
        f"6_{split}_{kind}.png" for split in ("train", "val") for kind in ("actions", "frames")
    }
    text = format_report(json.loads(path.read_text()))
    expected = report["val"]["rounds"]["2"]["actions"]["chunk"]["mse"]["mean"]
    assert f"{expected:.4f}" in text.split("val: 4 windows of 2 episodes")[1]
    assert all(len(line) < 160 for line in text.splitlines())


def test_a_step_is_picked(workdir, seen):
    latest, first = evaluate_workdir(workdir), evaluate_workdir(workdir, step=5, rounds=(1,))
    assert (latest.name, first.name) == ("6.json", "5.json")
    gates = [json.loads(p.read_text())["splits"]["val"]["gate"] for p in (first, latest)]
    np.testing.assert_allclose(2 * np.array(gates[0]), gates[1])
    longer = json.loads(evaluate_workdir(workdir, rounds=(4,), extrapolate="last").read_text())
    assert (longer["rounds"], longer["trained_rounds"], longer["extrapolate"]) == ([4], 2, "last")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7 .*\[5, 6\]"):
        evaluate_workdir(workdir, step=7)
    with pytest.raises(FileNotFoundError, match="is no workdir"):
        evaluate_workdir(workdir / "checkpoints")


def test_continuations_alone_leave_the_action_figures(workdir, seen):
    actions = evaluate_workdir(workdir)
    before = actions.read_bytes()
    video = evaluate_workdir(workdir, metrics=("video",))
    assert video == workdir / "eval" / "6_continuation.json"
    assert json.loads(video.read_text())["metrics"] == ["video"]
    assert actions.read_bytes() == before
    assert evaluate_workdir(workdir, metrics=("actions", "video")) == actions


def test_an_export_is_evaluated_like_its_workdir(exported, seen, params):
    path = evaluate_workdir(exported, rounds=(1,))
    assert path == exported / "eval" / "6.json"
    gate = json.loads(path.read_text())["splits"]["val"]["gate"]
    np.testing.assert_array_equal(gate, params["blocks"]["loop"]["gate"])


def test_other_data_keeps_the_scaling_of_the_run(workdir, seen, experiment, tmp_path):
    other = write_toy(tmp_path / "other", seed=100)
    path = evaluate_workdir(workdir, overrides=with_overrides(f"data.root={other}"))
    found = seen[0]
    assert found.members[0].statistics == experiment.members[0].statistics
    assert found.splits["val"].reader.root == other
    own = build(found.config).splits["val"]
    raw = own.statistics.actions.unnormalise(own[0]["action_chunk"].astype(np.float64))
    clipped = np.abs(own[0]["action_chunk"]) == 1
    expected = experiment.members[0].statistics.actions.normalise(raw)
    np.testing.assert_allclose(
        found.splits["val"][0]["action_chunk"][~clipped], expected[~clipped], rtol=1e-4, atol=1e-5
    )
    assert np.abs(found.splits["val"][0]["action_chunk"] - own[0]["action_chunk"]).max() > 1e-3
    assert set(json.loads(path.read_text())["overrides"]) == {"data.root"}


def test_other_data_needs_the_scaling_of_the_run(workdir, seen, tmp_path):
    """Runs of an earlier version kept the scaling of actions alone, under another name."""
    saved = json.loads((workdir / "config.json").read_text())
    (statistics,) = saved["provenance"].pop("statistics").values()
    saved["provenance"]["action_statistics"] = statistics["actions"]
    (workdir / "config.json").write_text(json.dumps(saved))
    other = write_toy(tmp_path / "other", seed=100)
    with pytest.raises(ValueError, match=f"{workdir} holds no statistics of actions and proprio"):
        evaluate_workdir(workdir, overrides=with_overrides(f"data.root={other}"))
    assert not (workdir / "eval").exists()


def test_the_scaling_of_an_earlier_version_is_refused(workdir, seen, tmp_path):
    """One dataset's statistics were saved without its name."""
    saved = json.loads((workdir / "config.json").read_text())
    (saved["provenance"]["statistics"],) = saved["provenance"]["statistics"].values()
    (workdir / "config.json").write_text(json.dumps(saved))
    other = write_toy(tmp_path / "other", seed=100)
    with pytest.raises(ValueError, match="holds no statistics of actions and proprio"):
        evaluate_workdir(workdir, overrides=with_overrides(f"data.root={other}"))


def test_the_weights_may_lie_elsewhere_but_must_be_the_same(workdir, seen, weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "copy")
    evaluate_workdir(workdir, overrides=with_overrides(f"backbone.path={copy}"))
    other = write_weights(tmp_path / "other", seed=5)
    for path, error, message in (
        (other, ValueError, "frozen weights 'transformer' at backbone.path = .*other"),
        (tmp_path / "nowhere", FileNotFoundError, "nowhere"),
    ):
        shutil.rmtree(workdir / "eval", ignore_errors=True)
        with pytest.raises(error, match=message):
            evaluate_workdir(workdir, overrides=with_overrides(f"backbone.path={path}"))
        assert not (workdir / "eval").exists()


def test_changed_data_is_refused(workdir, seen):
    saved = json.loads((workdir / "config.json").read_text())
    saved["provenance"]["fingerprints"]["data"] = "0" * 64
    (workdir / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="data at data.root = .* has fingerprint .* 0000"):
        evaluate_workdir(workdir)
    assert not (workdir / "eval").exists()


@pytest.mark.parametrize("argument", ["loop.rounds=3", "canvas.t_current=1", "data.frames=5"])
def test_another_model_is_refused(workdir, seen, argument):
    with pytest.raises(ValueError, match=f"{argument.split('=')[0]}: .*Evaluation may override"):
        evaluate_workdir(workdir, overrides=with_overrides(argument))
    evaluate_workdir(workdir, overrides=with_overrides("eval.windows=1", "mesh.fsdp=2"))


def test_rounds_above_the_trained_number_are_refused_before_anything_is_read(finished, experiment):
    with pytest.raises(ValueError, match="rounds = 3: trained with loop.rounds = 2"):
        evaluate_workdir(finished, rounds=(1, 3))
    with pytest.raises(ValueError, match="rounds = 3"):
        evaluate_experiment(experiment, {}, rounds=(3,))


def test_tasks_without_a_loop_extrapolate_nothing(experiment):
    config = experiment.config.copy_and_resolve_references()
    config.train.task = "vae"
    with pytest.raises(ValueError, match="extrapolate = 'last': a run of train.task = 'vae'"):
        make_evaluation(dataclasses.replace(experiment, config=config), extrapolate="last")
