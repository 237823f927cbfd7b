"""What loops add to the graft's loss: a student's share, and what rounds cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.tasks.build import build
from tests.tasks.models import first_batch, make_params


@pytest.fixture
def two_rounds(robot_config):
    robot_config.data.encode_once = 0
    robot_config.loop.rounds = 2
    robot_config.loss.deploy_fraction = 1.0
    robot_config.canvas.visual_weight, robot_config.canvas.action_weight = 0.5, 2.0
    return robot_config


def moved(params):
    """Gates and embeddings that do something."""
    rng, loop = np.random.default_rng(0), params["blocks"]["loop"]
    for name in ("gate", "text", "video"):
        noise = rng.standard_normal(loop[name].shape).astype(np.float32)
        loop[name] = loop[name] + 2 * noise
    return params


def test_a_student_learns_from_the_data_and_from_the_deepest_round(two_rounds):
    two_rounds.loop.self_distillation, two_rounds.train.steps = True, 200
    experiment = build(two_rounds)
    params, batch = moved(make_params(experiment)), first_batch(experiment, encoded=True)
    model, rng, now = experiment.model, jax.random.key(7), experiment.time.t_current
    loss = jax.jit(lambda batch: model.loss(params, batch, rng, 2))

    # With two rounds the student leaves after one.
    _, noise_rng = jax.random.split(rng)
    noise = jax.random.normal(noise_rng, (4, experiment.time.latents, 16, 8, 8))
    found = []
    for rounds in (2, 1):
        outputs, _ = jax.jit(
            lambda rounds=rounds: model.predict(
                params, batch, timesteps=jnp.full(4, 999), noise=noise, rounds=rounds
            )
        )()
        outputs = jax.tree.map(lambda x: np.asarray(x, np.float64), outputs)
        found.append((outputs["velocity"][:, now:], outputs["actions"]))
    teacher, student = found
    data = outputs["target"][:, now:], batch["action_chunk"]

    def error(found, expected):
        pairs = zip((0.5, 2.0), found, expected, strict=True)
        return sum(weight * ((a - b) ** 2).mean() for weight, a, b in pairs)

    assert error(student, teacher) > 1e-3 * error(student, data)
    for step, share in ((50, 0.75), (200, 0.0)):
        value, metrics = loss({**batch, "step": jnp.int32(step)})
        learned = share * error(student, data) + (1 - share) * error(student, teacher)
        added = 0.5 * metrics["distillation/diffusion"] + 2 * metrics["distillation/action"]
        np.testing.assert_allclose(added, learned, rtol=1e-4)
        np.testing.assert_allclose(value, error(teacher, data) + learned, rtol=1e-5)
        action = np.mean((teacher[1] - data[1]) ** 2)
        np.testing.assert_allclose(metrics["loss/action"], action, rtol=1e-5)
    _, metrics = jax.eval_shape(lambda: model.loss(params, batch, rng, 1))
    assert set(metrics) == {"loss/diffusion", "loss/action"}


def test_the_teacher_does_not_follow_its_student(two_rounds):
    two_rounds.loop.self_distillation, two_rounds.train.steps = True, 4
    experiment = build(two_rounds)
    model, batch = experiment.model, first_batch(experiment, encoded=True)
    rng = np.random.default_rng(0)

    def outputs():
        shapes = {"velocity": (4, experiment.time.latents, 16, 8, 8), "actions": (4, 4, 7)}
        return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}

    student, teacher, truth = outputs(), outputs(), {**batch, "target": outputs()["velocity"]}

    def added(student, teacher):
        errors = model._student_errors(student, teacher, {**truth, "step": jnp.int32(3)})
        return errors["action"]

    by_student, by_teacher = jax.grad(added, argnums=(0, 1))(student, teacher)
    for gradient in by_teacher.values():
        np.testing.assert_array_equal(gradient, 0)
    follows = 0.25 * (student["actions"] - batch["action_chunk"])
    follows += 0.75 * (student["actions"] - teacher["actions"])
    np.testing.assert_allclose(by_student["actions"], 2 * follows / follows.size, rtol=1e-4)


def test_rounds_that_cells_run_are_paid_for(two_rounds):
    two_rounds.loop.halting, two_rounds.loop.reinject = "learned", "scalar"
    two_rounds.loss.ponder = 0.25
    experiment = build(two_rounds)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model = experiment.model

    def loss(loop):
        changed = {**params, "blocks": {**params["blocks"], "loop": loop}}
        return model.loss(changed, batch, jax.random.key(0), 2)

    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["blocks"]["loop"])
    (value, metrics), grads = found
    # At the start every round is as likely as the other to be the last: 1 + 1/2 rounds.
    np.testing.assert_allclose(metrics["rounds_used"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss/ponder"], 0.25 * 1.5, rtol=1e-6)
    errors = 0.5 * metrics["loss/diffusion"] + 2 * metrics["loss/action"]
    np.testing.assert_allclose(value, errors + 0.25 * 1.5, rtol=1e-6)
    # All rounds give the same at the start, so the cost alone moves the chance to stop.
    halt = np.asarray(grads["halt"])
    blocks = len(halt)
    np.testing.assert_allclose(halt[:, 0], -0.25 * 0.25 / blocks, rtol=1e-4)
    np.testing.assert_array_equal(halt[:, 1], 0)
    assert (np.abs(grads["reinject"][:, 0]) > 0).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loop.over": "stack"}, "loop.over = 'stack' with train.task = 'graft'"),
        ({"loop.halting": "learn"}, "loop.halting = 'learn'"),
        ({"loop.self_distillation": True, "loop.rounds": 1}, "with loop.rounds = 1"),
        ({"loop.backprop_rounds": 3}, "loop.backprop_rounds = 3: expected 0"),
        ({"loss.ponder": -1.0}, "loss.ponder = -1.0: expected"),
    ],
)
def test_loops_that_do_not_go_are_refused(two_rounds, changes, message):
    two_rounds.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        build(two_rounds)
