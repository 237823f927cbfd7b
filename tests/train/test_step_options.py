"""Parts of a batch, the average, and what a step refuses before it touches the state."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roam_jax.microbatch import draw_rows, part_of
from roam_jax.train import names, optim, sharding
from roam_jax.train import state as state_lib
from roam_jax.train.averages import SPIKE_WARMUP, SPIKE_WINDOW
from roam_jax.train.step import SEEDS, make_seeds_step, make_train_step
from roam_jax.train.step_options import StepOptions
from tests.train import toy

SEED = 3
ALL_ON = StepOptions(ema_decay=0.9, spike_factor=4.0)
ONE = (1, 1)


def loss_by_row(params, batch, rng, rounds):
    """The toy's loss, with noise that a row has in whatever part it is."""
    y = batch["y"]
    noise = draw_rows(part_of(batch), len(y), lambda n: jax.random.normal(rng, (n, *y.shape[1:])))
    error = toy.predict(params, batch["x"], rounds) - y - 0.1 * noise
    return jnp.mean(error**2), {"loss/mean_error": jnp.mean(error)}


class Run:
    """A toy run step by step."""

    def __init__(self, options, *, mesh=ONE, task=None, tx=None, schedule=None):
        self.task, self.tx = task or toy.make_task(loss=loss_by_row), tx
        if tx is None:
            self.tx, schedule = optim.make_optimizer(toy.make_config().optim, steps=12)
        self.mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
        wanted = state_lib.abstract_params(self.task, self.mesh, rules=toy.RULES)
        shapes = state_lib.partition(wanted, self.task.trainable)[0]
        self.like = state_lib.abstract_state(shapes, self.tx, self.mesh, options)
        params = state_lib.create_params(self.task, wanted, pretrained={}, seed=SEED)
        trainable, self.frozen = state_lib.partition(params, self.task.trainable)
        self.state = state_lib.create_state(trainable, self.tx, like=self.like)
        schedule = schedule or (lambda step: 1.0)
        self._step = make_train_step(
            self.task, self.tx, schedule, seed=SEED, like=self.like, options=options
        )

    def __call__(self, batch):
        """Metrics of a step on a host batch."""
        shapes = sharding.batch_shapes(self.task.batch_spec, self.mesh)
        batch = sharding.put_batch(batch, shapes)
        self.state, metrics = self._step(self.state, self.frozen, batch, rounds=1)
        return jax.device_get(metrics)

    @property
    def arrays(self):
        """Copies of all that the state holds."""
        return jax.tree.map(np.array, self.state)


def batches(count, *, first=0):
    drawn = toy.ToyBatches()
    drawn.position = first
    return [next(drawn) for _ in range(count)]


def require_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("mesh", [ONE, (8, 1), (2, 4)])
def test_parts_are_the_batch(mesh):
    """In losses, gradients (plain descent at rate 1) and metrics, on every mesh."""
    whole = Run(StepOptions(), tx=optax.sgd(1.0))
    parts = Run(StepOptions(accumulate=2), mesh=mesh, tx=optax.sgd(1.0))
    (batch,) = batches(1)
    expected, found = whole(batch), parts(batch)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=3e-6, atol=1e-7, err_msg=name)
    grads = names.flatten(parts.arrays.trainable)
    for name, value in names.flatten(whole.arrays.trainable).items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-6, atol=2e-7, err_msg=name)


def test_rows_that_do_not_come_apart_are_refused():
    spec = toy.make_task().batch_spec
    StepOptions(accumulate=2).check_rows(spec, shards=8)
    StepOptions().check_rows(spec, shards=5)
    message = (
        "train.accumulate = 3 with batches of 16 rows of x over 2 devices: .*nearest: 12 or 18"
    )
    with pytest.raises(ValueError, match=message):
        StepOptions(accumulate=3).check_rows(spec, shards=2)
    with pytest.raises(ValueError, match=r"expected a multiple of 32 rows \(nearest: 32;"):
        StepOptions(accumulate=4).check_rows(spec, shards=8)


def test_the_average_by_hand():
    run = Run(StepOptions(ema_decay=0.9))
    mean = {n: x.astype(np.float64) for n, x in names.flatten(run.arrays.trainable).items()}
    require_equal(run.state.ema, run.state.trainable)
    for batch in batches(3):
        run(batch)
        for name, new in names.flatten(run.arrays.trainable).items():
            mean[name] = 0.9 * mean[name] + 0.1 * new
    for name, found in names.flatten(run.arrays.ema).items():
        np.testing.assert_allclose(found, mean[name], rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.abs(found - names.flatten(run.arrays.trainable)[name]).max() > 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_touches_nothing_but_the_count(bad):
    run = Run(ALL_ON)
    first, poisoned, last = batches(3)
    run(first)
    before = run.arrays
    metrics = run({**poisoned, "y": poisoned["y"] * bad})
    assert metrics["refused"] == 1 and not np.isfinite(metrics["loss"])
    assert int(run.state.step) == 2
    require_equal(run.arrays, before.replace(step=np.int32(2)))
    assert run(last)["refused"] == 0
    assert np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.arrays)])).all()
    # As if there had been no such batch, but for the step's key.
    other = Run(ALL_ON)
    other(first)
    other.state = other.state.replace(step=other.state.step + 1)
    other(last)
    require_equal(run.arrays, other.arrays)


def test_a_gradient_alone_that_is_not_finite_is_refused():
    def loss(params, batch, rng, rounds):
        return jnp.sum(jnp.sqrt(jnp.abs(params["head"]["bias"]))), {}  # sqrt at 0

    run = Run(StepOptions(), task=toy.make_task(loss=loss))
    before = run.arrays
    metrics = run(batches(1)[0])
    assert metrics["refused"] == 1 and metrics["loss"] == 0
    require_equal(run.arrays, before.replace(step=np.int32(1)))


def test_the_rate_follows_the_updates_that_were_made():
    run = Run(StepOptions())
    first, second, third = batches(3)
    schedule = optim.make_optimizer(toy.make_config().optim, steps=12)[1]
    assert run(first)["lr"] == pytest.approx(float(schedule(0)))
    assert run({**second, "y": second["y"] * np.nan})["lr"] == pytest.approx(float(schedule(1)))
    assert run(third)["lr"] == pytest.approx(float(schedule(1)))


def test_spikes_are_refused_once_there_is_a_mean():
    run = Run(ALL_ON)
    (batch,) = batches(1)
    spike = {**batch, "y": 100 * batch["y"]}
    norms = []
    for step in range(SPIKE_WARMUP):
        metrics = run(spike if step == 3 else batch)
        assert metrics["refused"] == 0, step
        norms.append(metrics["grad_norm"])
    guard = run.arrays.guard
    assert guard["accepted"] == SPIKE_WARMUP
    np.testing.assert_allclose(guard["mean_norm"], np.mean(norms), rtol=1e-5)
    before = run.arrays
    harder = {**batch, "y": 1e4 * batch["y"]}
    metrics = run(harder)
    assert metrics["refused"] == 1 and metrics["grad_norm"] > 4 * guard["mean_norm"]
    require_equal(run.arrays, before.replace(step=before.step + 1))
    assert run(batch)["refused"] == 0
    unlimited = Run(StepOptions())
    for _ in range(SPIKE_WARMUP):
        unlimited(batch)
    assert unlimited(harder)["refused"] == 0


def test_the_mean_forgets():
    from roam_jax.train.averages import advance_guard, start_guard

    guard = start_guard(2.0)
    for _ in range(SPIKE_WINDOW):
        guard = advance_guard(guard, jnp.float32(8.0))
    guard = advance_guard(guard, jnp.float32(8.0 + SPIKE_WINDOW))
    np.testing.assert_allclose(guard["mean_norm"], 9.0, rtol=1e-6)


def test_norms_by_group():
    run = Run(StepOptions(), tx=optax.sgd(0.5))
    before = names.flatten(run.arrays.trainable)
    metrics = run(batches(1)[0])
    after = names.flatten(run.arrays.trainable)
    for group in ("head", "hidden"):
        inside = [name for name in before if name.startswith(group + "/")]
        moved = np.sqrt(sum(((after[n] - before[n]).astype(np.float64) ** 2).sum() for n in inside))
        size = np.sqrt(sum((before[n].astype(np.float64) ** 2).sum() for n in inside))
        np.testing.assert_allclose(metrics[f"update_norm/{group}"], moved, rtol=1e-4)
        np.testing.assert_allclose(metrics[f"grad_norm/{group}"], 2 * moved, rtol=1e-4)
        np.testing.assert_allclose(metrics[f"param_norm/{group}"], size, rtol=1e-5)
    norms = [metrics[f"grad_norm/{group}"] for group in ("head", "hidden")]
    np.testing.assert_allclose(np.hypot(*norms), metrics["grad_norm"], rtol=1e-6)


def test_a_seed_is_refused_alone():
    """Of several runs in one program only the one with the bad batch stays as it was."""
    task = toy.make_task(loss=loss_by_row)
    tx, schedule = optim.make_optimizer(toy.make_config().optim, steps=12)
    runs = [Run(ALL_ON, task=task) for _ in range(2)]
    join = functools.partial(jax.tree.map, lambda *x: jnp.asarray(np.stack(x)))
    states = join(*(run.arrays for run in runs))
    good, bad = batches(2)
    bad = {**bad, "y": bad["y"] * np.nan}
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), (SEEDS,), devices=jax.devices()[:1], axis_types=auto)
    options = dataclasses.replace(ALL_ON, accumulate=2)
    step = make_seeds_step(task, tx, schedule, mesh=mesh, shared_frozen=True, options=options)
    before = jax.device_get(states)
    after, metrics = step(
        states, runs[0].frozen, join(good, bad), jnp.array([SEED, SEED], jnp.uint32), rounds=1
    )
    np.testing.assert_array_equal(metrics["refused"], [0, 1])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if old.ndim > 1:
            assert (old[0] != new[0]).any()
            np.testing.assert_array_equal(old[1], new[1])
    runs[0](good)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-7),
        jax.device_get(after),
        runs[0].arrays,
    )


@pytest.mark.parametrize(
    "field, value, key",
    [
        ("accumulate", 0, "train.accumulate = 0"),
        ("ema_decay", 1.0, "optim.ema_decay = 1.0"),
        ("ema_decay", -0.1, "optim.ema_decay = -0.1"),
        ("spike_factor", 0.5, "train.spike_factor = 0.5"),
        ("spike_factor", float("inf"), "train.spike_factor = inf"),
        ("spike_factor", float("nan"), "train.spike_factor = nan"),
    ],
)
def test_values_out_of_range_are_named(field, value, key):
    with pytest.raises(ValueError, match=key):
        StepOptions(**{field: value})


def test_options_of_a_config():
    config = toy.make_config(accumulate=4, spike_factor=5.0, ema_decay=0.99)
    assert StepOptions.from_config(config) == StepOptions(4, 0.99, 5.0)
