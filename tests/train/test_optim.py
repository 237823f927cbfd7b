from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roam_jax.train import optim
from tests.train import toy


def test_schedule_values():
    lr = optim.warmup_cosine(lr=0.02, warmup_steps=4, steps=12, final_lr_fraction=0.1)
    expected = {
        0: 0.005,  # a quarter: the first step is not lost
        3: 0.02,
        4: 0.02,
        8: 0.002 + 0.018 / 2,  # half-way
        10: 0.002 + 0.018 * (1 + math.cos(0.75 * math.pi)) / 2,
        12: 0.002,
        50: 0.002,
    }
    for step, value in expected.items():
        np.testing.assert_allclose(float(lr(step)), value, rtol=1e-6, err_msg=str(step))


def test_schedule_equals_optax_after_warmup():
    lr = optim.warmup_cosine(lr=0.02, warmup_steps=0, steps=10, final_lr_fraction=0.3)
    reference = optax.cosine_decay_schedule(0.02, 10, alpha=0.3)
    for step in range(11):
        np.testing.assert_allclose(float(lr(step)), float(reference(step)), rtol=1e-6)


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        ("lr", 0.0),
        ("warmup_steps", 13),
        ("warmup_steps", -1),
        ("final_lr_fraction", 1.5),
        ("clip_norm", 0.0),
        ("weight_decay", -0.1),
    ],
)
def test_values_out_of_range_are_named(leaf, value):
    config = toy.make_config().optim
    with config.unlocked():
        config[leaf] = value
    with pytest.raises(ValueError, match=rf"optim.{leaf} = {value}"):
        optim.make_optimizer(config, steps=12)


def test_decay_mask():
    params = {
        "blocks": {"loop": {"gate": np.zeros((3, 4))}, "kernel": np.zeros((3, 4, 4))},
        "head": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)},
    }
    assert optim.decay_mask(params, ("loop/",)) == {
        "blocks": {"loop": {"gate": False}, "kernel": True},
        "head": {"kernel": True, "bias": False},
    }


def test_updates_are_adamw_with_clipping_by_hand():
    config = toy.make_config().optim
    tx, schedule = optim.make_optimizer(config, steps=12)
    random = np.random.default_rng(1)
    params = {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    ours = {name: jnp.asarray(value) for name, value in params.items()}
    opt_state = tx.init(ours)
    for step, size in enumerate((5.0, 0.01, 2.0), start=1):
        grads = {n: (size * random.normal(size=p.shape)).astype("f4") for n, p in params.items()}
        updates, opt_state = tx.update(grads, opt_state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1.0, config.clip_norm / norm)
            first, second = moments[name]
            first = config.b1 * first + (1 - config.b1) * grad
            second = config.b2 * second + (1 - config.b2) * grad**2
            moments[name] = first, second
            update = first / (1 - config.b1**step)
            update /= np.sqrt(second / (1 - config.b2**step)) + config.eps
            if name == "kernel":
                update = update + config.weight_decay * params[name]
            params[name] = params[name] - float(schedule(step - 1)) * update
            np.testing.assert_allclose(ours[name], params[name], rtol=1e-5, atol=1e-7)
