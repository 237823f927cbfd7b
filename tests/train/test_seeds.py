"""Many seeds as one program: the numbers of each are those of its run alone, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from roam_jax.train import loop, names, seeds_program
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.curriculum import Curriculum
from roam_jax.train.interrupts import REQUEUE
from roam_jax.train.metrics import read_metrics, reproducible
from roam_jax.train.seeds import run_seeds, with_seed
from roam_jax.train.seeds_workdir import SeedsWorkdir
from roam_jax.train.workdir import Workdir
from tests.train import toy

SEEDS = (1, 5, 6)
STEPS = 8


class SeedBatches(toy.ToyBatches):
    """Batch k of a seed: another one for every seed."""

    def __init__(self, seed, **events):
        super().__init__(**events)
        self.seed = seed

    def __next__(self):
        return {name: values * (1 + self.seed / 4) for name, values in super().__next__().items()}

    def get_state(self):
        return {"seed": self.seed, **super().get_state()}


def config(**train) -> ConfigDict:
    return toy.make_config(mesh=(-1, 1), **{"steps": STEPS, "save_every": 2, **train})


def many(workdir, *, seeds=SEEDS, batches=SeedBatches, task=None, rounds=2, **changes):
    keywords = {
        name: changes.pop(name)
        for name in ("at_once", "provenances", "evaluate", "flops_per_step")
        if name in changes
    }
    run_seeds(
        task or toy.make_task(),
        lambda seed: contextlib.nullcontext(batches(seed)),
        seeds=seeds,
        config=changes.pop("config", None) or config(**changes),
        workdir=workdir,
        rounds=rounds,
        rules=toy.RULES,
        **keywords,
    )


def alone(workdir, seed, *, rounds=2, **changes):
    return loop.run(
        toy.make_task(),
        SeedBatches(seed),
        config=with_seed(config(**changes), seed),
        workdir=workdir,
        rounds=rounds,
        rules=toy.RULES,
    )


def rows_of(path, seed=None):
    """step -> the training metrics of a seed, without times."""
    rows = [row for row in read_metrics(path / "metrics.jsonl") if row.pop("seed", None) == seed]
    found = {row.pop("step"): row for row in rows}
    assert len(found) == len(rows)
    return {
        step: {k: v for k, v in reproducible(row).items() if not k.startswith("eval/")}
        for step, row in found.items()
    }


def final_state(workdir):
    """Every array of the last checkpoint."""
    from benchmarks.fault_runs import final_arrays

    return final_arrays(Workdir(workdir))


def assert_same_runs(one, other, seeds=SEEDS):
    """Bit for bit, metrics and arrays."""
    for seed in seeds:
        assert rows_of(one, seed) == rows_of(other, seed)
        arrays, others = (final_state(path / "seeds" / str(seed)) for path in (one, other))
        assert arrays.keys() == others.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(workdir, evaluations) of three seeds that nobody disturbed."""
    path = tmp_path_factory.mktemp("seeds") / "run"
    seen = []

    def evaluate(params, step):
        seen.append((step, jax.tree.map(np.asarray, params)))
        return {"order": len(seen)}

    provenances = {seed: {"data": seed} for seed in SEEDS}
    many(path, evaluate=evaluate, eval_every=STEPS, provenances=provenances)
    return path, seen


@pytest.fixture
def one_device(monkeypatch):
    """Seeds lie on one device, so that memory grows with their number."""
    spread = seeds_program._spread
    monkeypatch.setattr(seeds_program, "_spread", lambda count: spread(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_alone_gives_the_same_numbers(undisturbed, tmp_path, seed):
    path, _ = undisturbed
    state = alone(tmp_path, seed)
    expected, found = rows_of(tmp_path), rows_of(path, seed)
    assert expected.keys() == found.keys() == set(range(1, STEPS + 1))
    for step, row in expected.items():
        for name, value in row.items():
            np.testing.assert_allclose(found[step][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    arrays = final_state(path / "seeds" / str(seed))
    for name, array in final_state(tmp_path).items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    assert int(state.step) == STEPS


def test_the_folder_of_a_seed_is_a_workdir_of_its_own(undisturbed, tmp_path):
    """It resumes without --seeds, from any of its checkpoints, to the same numbers."""
    whole, _ = undisturbed
    path = tmp_path / "run"
    shutil.copytree(whole / "seeds" / "5", path)
    saved, provenance = Workdir(path).read()
    assert saved["seed"] == 5 and provenance == {"data": 5}
    assert any(Workdir(path).tensorboard.iterdir())
    shutil.rmtree(path / "checkpoints" / str(STEPS))
    alone(path, 5)
    for step, row in rows_of(path).items():
        assert step > 6
        np.testing.assert_allclose(row["loss"], rows_of(whole, 5)[step]["loss"], rtol=1e-5)


def test_evaluation_sees_the_parameters_of_each_seed(undisturbed):
    path, seen = undisturbed
    assert [step for step, _ in seen] == [STEPS] * len(SEEDS)
    for i, seed in enumerate(SEEDS):
        params = names.flatten(seen[i][1])
        assert {name: leaf.shape for name, leaf in params.items()} == toy.SHAPES
        key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))
        # The frozen kernel comes from the seed; what trains is what was saved.
        np.testing.assert_array_equal(params["hidden/kernel"], toy.init(key)["hidden"]["kernel"])
        saved = final_state(path / "seeds" / str(seed))
        (head,) = [
            v for k, v in saved.items() if "trainable" in k and "'head'" in k and "bias" in k
        ]
        np.testing.assert_array_equal(params["head/bias"], head)
    rows = read_metrics(path / "metrics.jsonl")[-len(SEEDS) :]
    assert [(r["seed"], r["step"], r["eval/order"]) for r in rows] == [
        (seed, STEPS, i + 1) for i, seed in enumerate(SEEDS)
    ]


def test_groups_one_after_another(undisturbed, tmp_path):
    many(tmp_path, at_once=2)
    assert SeedsWorkdir(tmp_path).groups() == [[1, 5], [6]]
    order = [row["seed"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert order == [1, 5] * STEPS + [6] * STEPS
    for seed in SEEDS:
        for step, row in rows_of(tmp_path, seed).items():
            expected = rows_of(undisturbed[0], seed)[step]["loss"]
            np.testing.assert_allclose(row["loss"], expected, rtol=1e-5)


def test_seeds_of_one_device_in_blocks(undisturbed, tmp_path, one_device):
    many(tmp_path, seeds=(*SEEDS, 9))
    for seed in SEEDS:
        expected = rows_of(undisturbed[0], seed)
        for step, row in rows_of(tmp_path, seed).items():
            np.testing.assert_allclose(row["loss"], expected[step]["loss"], rtol=1e-5)
            np.testing.assert_allclose(row["grad_norm"], expected[step]["grad_norm"], rtol=1e-5)


def test_more_seeds_are_added_to_a_folder(tmp_path):
    many(tmp_path, seeds=(0,), steps=4)
    many(tmp_path, seeds=(0, 1), steps=4)
    assert SeedsWorkdir(tmp_path).groups() == [[0], [1]]
    assert [row["seed"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0] * 4 + [1] * 4


def test_a_curriculum(tmp_path):
    phases = Curriculum(2, (2,), steps=4)
    many(tmp_path / "many", rounds=phases, steps=4, seeds=(1, 5))
    alone(tmp_path / "alone", 5, rounds=phases, steps=4)
    expected = rows_of(tmp_path / "alone")
    for step, row in rows_of(tmp_path / "many", 5).items():
        assert row["rounds"] == expected[step]["rounds"] == (step + 1) // 2
        np.testing.assert_allclose(row["loss"], expected[step]["loss"], rtol=1e-5)


def test_frozen_parameters_of_files_are_shared(tmp_path, monkeypatch):
    task = toy.make_task()
    kernel = np.asarray(toy.init(jax.random.key(9))["hidden"]["kernel"])
    task = toy.make_task(pretrained=lambda: {"hidden": {"kernel": kernel}})
    seen = {}
    split = seeds_program.Stacked.split_frozen

    def record(self, frozen):
        seen["frozen"] = jax.tree.map(np.asarray, frozen)
        return split(self, frozen)

    monkeypatch.setattr(seeds_program.Stacked, "split_frozen", record)
    many(tmp_path, task=task, steps=4, eval_every=4, evaluate=lambda params, step: {}, seeds=(1, 5))
    np.testing.assert_array_equal(seen["frozen"]["hidden"]["kernel"], kernel)


def test_seeds_are_spread_over_devices(tmp_path):
    assert jax.device_count() == 8
    mesh = seeds_program._spread
    assert [mesh(count).size for count in (1, 2, 3, 7, 8, 12, 16)] == [1, 2, 3, 7, 8, 6, 8]


# Kills, signals and damage.


class Killed(Exception):
    """Stands for a kill: nothing is done any more."""


def test_a_kill_between_the_saves_of_two_seeds(undisturbed, tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_some(self, step, *args, **kwargs):
        if step == 6 and "/5/" in str(self.directory):
            raise Killed
        save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", save_some)
    with pytest.raises(Killed):
        many(tmp_path, keep=1)
    monkeypatch.setattr(Checkpoints, "save", save)
    found = {s: sorted(os.listdir(tmp_path / "seeds" / str(s) / "checkpoints")) for s in SEEDS}
    assert found == {1: ["4", "6"], 5: ["2", "4"], 6: ["2", "4"]}
    many(tmp_path)
    assert_same_runs(undisturbed[0], tmp_path)


def test_sigterm_saves_every_seed_and_the_same_command_goes_on(undisturbed, tmp_path):
    def end():
        os.kill(os.getpid(), signal.SIGTERM)

    class Ending(SeedBatches):
        def __init__(self, seed):
            super().__init__(seed, before={5: end} if seed == 6 else None)

    with pytest.raises(SystemExit) as stopped:
        many(tmp_path, batches=Ending)
    assert stopped.value.code == REQUEUE
    assert 0 < SeedsWorkdir(tmp_path).common_step(SEEDS) < STEPS
    many(tmp_path)
    assert_same_runs(undisturbed[0], tmp_path)


def test_a_seed_that_is_not_finite_is_named(tmp_path):
    class Poisoned(SeedBatches):
        def __init__(self, seed):
            super().__init__(seed, poison=range(4, 100) if seed == 5 else ())

    with pytest.raises(FloatingPointError, match="^seed 5, step 7: loss = nan.* 3 updates"):
        many(tmp_path, batches=Poisoned)
    # The others go on without it.
    many(tmp_path, seeds=(1, 6))
    assert SeedsWorkdir(tmp_path).groups() == [[5], [1, 6]]
    assert max(rows_of(tmp_path, 6)) == STEPS and max(rows_of(tmp_path, 5)) == 6


# Memory.


def bytes_of(count):
    programs = seeds_program.Programs(
        toy.make_task(), config=config(), curriculum=Curriculum(2, (), STEPS), rules=toy.RULES
    )
    return seeds_program.needed_bytes(programs.of(count, start=0).steps[2])


def test_memory_decides_how_many_are_trained_at_once(tmp_path, monkeypatch, one_device, caplog):
    enough = bytes_of(2)
    monkeypatch.setattr(seeds_program, "available_bytes", lambda devices: enough)
    caplog.set_level("INFO")
    many(tmp_path, seeds=(0, 1, 2), steps=3)
    assert SeedsWorkdir(tmp_path).groups() == [[0, 1], [2]]
    told = [r.getMessage() for r in caplog.records if "seeds at once need" in r.getMessage()]
    assert [line.split()[0] for line in told] == ["3", "2"]


def test_seeds_that_do_not_fit(tmp_path, monkeypatch, one_device):
    one = bytes_of(1)
    monkeypatch.setattr(seeds_program, "available_bytes", lambda devices: one)
    with pytest.raises(ValueError, match=f"--seeds_at_once 2: .* needed, {one:,} available"):
        many(tmp_path / "run", at_once=2)
    monkeypatch.setattr(seeds_program, "available_bytes", lambda devices: one - 1)
    message = f"not even one seed fits in memory \\({one:,} bytes needed, {one - 1:,} available\\)"
    with pytest.raises(ValueError, match=message):
        many(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, r"seeds = \[\]: expected different seeds"),
        ({"seeds": (1, 1)}, r"seeds = \[1, 1\]: expected different seeds"),
        ({"seeds": (-1,)}, r"seeds = \[-1\]: expected different seeds"),
        ({"at_once": 0}, "--seeds_at_once 0: expected 1 or more"),
        ({"steps": 0}, "train.steps = 0: expected 1 or more"),
        ({"config": toy.make_config(mesh=(2, 4))}, "mesh.fsdp = 4 with --seeds"),
        ({"config": toy.make_config(mesh=(3, 1))}, "mesh.data = 3, mesh.fsdp = 1"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        many(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_folders_of_other_runs(undisturbed, tmp_path):
    path, _ = undisturbed
    with pytest.raises(ValueError, match=r"seeds/1 was made with another config: train\.steps"):
        many(path, steps=STEPS + 1)
    with pytest.raises(ValueError, match="holds runs of several seeds: expected --seeds, or"):
        alone(path, 1)
    alone(tmp_path, 1, steps=3)
    with pytest.raises(ValueError, match="is the workdir of one run: expected a new folder"):
        many(tmp_path, steps=3)


def test_a_seed_that_went_on_alone(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed[0], path)
    shutil.rmtree(path / "seeds" / "5" / "checkpoints")
    last = f"seed 1: {STEPS}, seed 5: 0, seed 6: {STEPS}"
    with pytest.raises(ValueError, match=f"{last}.* is 0; expected --seeds without 1, 6"):
        many(path)
    many(path, seeds=(5,))
    assert max(rows_of(path, 5)) == STEPS


def test_a_damaged_list_of_groups(undisturbed, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(undisturbed[0], path)
    (path / "seeds.json").write_text(json.dumps({"groups": 3}))
    with pytest.raises(ValueError, match=r'seeds\.json: expected \{"groups": \[\[seed'):
        many(path)
