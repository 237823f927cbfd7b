"""The loss of a canvas model: its closed forms, what enters, and what trains what."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.data.scene import Stream
from roam_jax.model.cells import CLEAN
from roam_jax.tasks.balance import Balance
from roam_jax.tasks.canvas_errors import distance, mean_over, row_errors
from roam_jax.tasks.cell_values import cell_count, cell_features, from_cells, to_cells
from roam_jax.tasks.distillation import student_exit
from tests.tasks.scenes import FEW, random_like, small_batch, small_model, small_module

KEY = jax.random.key(11)
DIFFUSED = ("film", "later", "gain")
PREDICTED = (*DIFFUSED, "price", "answer")
FEW_PREDICTED = ("film", "price", "answer")


@functools.cache
def make_params(model):
    return random_like(jax.eval_shape(model.init, jax.random.key(0)))


@functools.cache
def plain():
    return small_model(noised_fraction=0.4)


def test_patches_are_pixels_in_the_order_of_their_cells():
    stream = Stream("film", "patches", (2, 4, 6, 3), "input", patch=2)
    video = np.random.default_rng(0).standard_normal((5, *stream.shape)).astype(np.float32)
    cells = to_cells(stream, jnp.asarray(video))
    assert cells.shape == (5, cell_count(stream), cell_features(stream)) == (5, 12, 12)
    for number, (t, row, column) in enumerate(np.ndindex(2, 2, 3)):
        patch = video[:, t, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(cells[:, number], patch.reshape(5, -1))
    np.testing.assert_array_equal(from_cells(stream, cells), video)
    numbers = Stream("gain", "scalars", (3,), "output", "diffusion")
    assert from_cells(numbers, jnp.zeros((5, 3, 1))).shape == (5, 3)
    with pytest.raises(ValueError, match="'film': frames of 4 x 6 pixels are no whole number"):
        cell_count(Stream("film", "patches", (2, 4, 6, 3), "input", patch=4))


def test_errors_are_mean_squares_and_cross_entropies():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    squares = np.square(a - b).mean(axis=(1, 2))
    tokens = rng.integers(0, 5, (3, 4))
    chances = np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(chances, tokens[..., None], axis=-1)[..., 0]
    x, y = jnp.asarray(a), jnp.asarray(b)
    np.testing.assert_allclose(row_errors("diffusion", x, y), squares, rtol=1e-6)
    found = row_errors("classification", x, jnp.asarray(tokens))
    np.testing.assert_allclose(found, -np.log(chosen).mean(axis=1), rtol=1e-5)
    other = np.exp(b) / np.exp(b).sum(axis=-1, keepdims=True)
    divergence = (other * np.log(other / chances)).sum(axis=-1).mean(axis=1)
    np.testing.assert_allclose(distance("classification", x, y), divergence, rtol=1e-5)
    np.testing.assert_allclose(distance("classification", x, x), 0, atol=1e-6)
    np.testing.assert_allclose(distance("regression", x, y), squares, rtol=1e-6)
    counts = jnp.array([True, False, True])
    assert float(mean_over(jnp.array([1.0, jnp.nan, 3.0]), counts)) == 2
    assert float(mean_over(jnp.ones(3), ~(counts | True))) == 0


def test_what_is_drawn_is_noised_by_the_schedule_and_the_rest_is_clean():
    model, size = plain(), 64
    cells = jax.jit(model.examples)(small_batch(size))
    noised = jax.jit(model.draw)(KEY, cells)
    clean = np.stack([noised.timesteps[name] == CLEAN for name in DIFFUSED])
    assert not clean.all(axis=0).any()  # something is noised in every row
    # At least one of three, each with chance 0.4: 1 - 0.6 of them clean but for rows of three.
    share = 0.6 - 0.6**3 / 3
    assert abs(clean.mean() - share) < 4 * math.sqrt(share * (1 - share) / clean.size)
    alphas = model.schedule.alphas_cumprod
    for name, rows in zip(DIFFUSED, clean, strict=True):
        np.testing.assert_array_equal(noised.counts[name], ~rows)
        np.testing.assert_array_equal(noised.data[name][rows], cells[name][rows])
        t = np.asarray(noised.timesteps[name])[~rows]
        assert t.min() >= 0 and t.max() <= 999 and len(set(t.tolist())) > len(t) / 2
        shape = (-1, *[1] * (cells[name].ndim - 1))
        alpha = alphas[t].reshape(shape)
        x, noisy = np.asarray(cells[name])[~rows], np.asarray(noised.data[name])[~rows]
        noise = (noisy - np.sqrt(alpha) * x) / np.sqrt(1 - alpha)
        velocity = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * x
        target = np.asarray(noised.targets[name])[~rows].reshape(velocity.shape)
        np.testing.assert_allclose(target, velocity, atol=2e-2)  # noise is found by a division
    for name in ("seen", "words", "gauge", "pose"):
        np.testing.assert_array_equal(noised.data[name], cells[name])
    assert {"price", "answer"} & set(noised.data) == set()


def test_regions_draw_timesteps_of_their_own():
    model = small_model()
    noised = jax.jit(lambda batch: model.draw(KEY, model.examples(batch)))(small_batch(64))
    assert all((noised.timesteps[name] >= 0).all() for name in DIFFUSED)  # all are noised
    steps = np.stack([noised.timesteps[name] for name in DIFFUSED])
    assert (np.abs(np.corrcoef(steps) - np.eye(3)) < 0.5).all()


def test_nothing_of_an_output_enters_at_pure_noise():
    """Change every clean value of every output: inputs and predictions stay bitwise equal."""
    model = plain()
    params, cells = make_params(model), jax.jit(model.examples)(small_batch())
    noise = {name: jax.random.normal(KEY, cells[name].shape) for name in DIFFUSED}
    pure = dict.fromkeys(DIFFUSED, jnp.full(4, 999))
    other = dict(cells)
    for name in PREDICTED:
        other[name] = cells[name] + (1 if name == "answer" else 3.0)
    enter = jax.jit(lambda cells: model.noise(cells, pure, noise))
    found = [enter(values) for values in (cells, other)]
    jax.tree.map(np.testing.assert_array_equal, found[0].data, found[1].data)
    predict = jax.jit(functools.partial(model.predict, rounds=1))
    outputs = [predict(params, noised)[0] for noised in found]
    jax.tree.map(np.testing.assert_array_equal, *outputs)
    assert all((found[0].targets[n] != found[1].targets[n]).any() for n in PREDICTED)


def test_an_untrained_model_has_the_loss_of_predicting_nothing():
    model = small_model(noised_fraction=0.4)
    params = make_params(model)
    zeroed = {n: {**p, "out": jax.tree.map(jnp.zeros_like, p["out"])} for n, p in
              params["decoders"].items()}  # fmt: skip
    loss, metrics = jax.jit(functools.partial(model.loss, rounds=2))(
        {**params, "decoders": zeroed}, small_batch(), KEY
    )
    draw_rng, _ = jax.random.split(KEY)
    noised = jax.jit(lambda batch: model.draw(draw_rng, model.examples(batch)))(small_batch())
    expected = {"answer": math.log(4), "price": np.square(noised.targets["price"]).mean()}
    for name in DIFFUSED:
        rows = np.asarray(noised.counts[name])
        squares = np.square(noised.targets[name])[rows]
        expected[name] = squares.mean() if rows.any() else 0.0
    assert {n: float(metrics[f"loss/{n}"]) for n in PREDICTED} == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-5)
    assert set(metrics) == {f"loss/{name}" for name in PREDICTED}


def test_a_region_that_trains_its_decoder_alone():
    names = ("answer",)
    balance = Balance("fixed", FEW_PREDICTED, weights=dict.fromkeys(FEW_PREDICTED[:-1], 0.0),
                      decoder_only=names)  # fmt: skip
    model = small_model(balance=balance, module=small_module(streams=FEW))
    grads = jax.jit(jax.grad(lambda p: model.loss(p, small_batch(), KEY, 1)[0]))(make_params(model))
    size = {n: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(g)) for n, g in grads.items()}
    assert size["blocks"] == size["cells"] == size["norm_out"] == 0 < size["decoders"]
    moved = {n: float(jnp.abs(g["out"]["kernel"]).sum()) for n, g in grads["decoders"].items()}
    assert moved["answer"] > 0 and sum(moved.values()) == moved["answer"]


@pytest.mark.parametrize("over", ["block", "stack"])
def test_the_student_is_the_model_after_fewer_rounds(over):
    module = small_module(streams=FEW, over=over, rounds=3, self_distillation=True)
    model = small_model(module=module, steps=100)
    params, batch = make_params(model), small_batch()
    draw_rng, exit_rng = jax.random.split(KEY)
    noised = jax.jit(lambda batch: model.draw(draw_rng, model.examples(batch)))(batch)
    exit = int(student_exit(exit_rng, 3))
    assert exit in (1, 2)

    teacher, student = jax.jit(
        lambda *given: [model.predict(*given, rounds=rounds)[0] for rounds in (3, exit)]
    )(params, noised)
    lossy = jax.jit(functools.partial(model.loss, rounds=3))
    for step in (0, 25):
        loss, metrics = lossy(params, {**batch, "step": jnp.int32(step)}, KEY)
        share, total = 1 - step / 100, 0.0
        for name in FEW_PREDICTED:
            objective = model.regions[name].objective
            away = float(distance(objective, student[name], teacher[name]).mean())
            own, best = (
                float(row_errors(objective, x[name], noised.targets[name]).mean())
                for x in (student, teacher)
            )
            added = share * own + (1 - share) * away
            assert float(metrics[f"distillation/{name}"]) == pytest.approx(added, rel=1e-4)
            assert float(metrics[f"loss/{name}"]) == pytest.approx(best, rel=1e-4)
            total += best + added
        assert float(loss) == pytest.approx(total, rel=1e-4)


def test_the_teacher_is_not_taught_by_its_student():
    """At the end of training all that a student adds is its distance to a fixed teacher."""
    module = small_module(streams=FEW, over="stack", rounds=2, self_distillation=True)
    model = small_model(module=module, steps=10)
    params, batch = make_params(model), {**small_batch(), "step": jnp.int32(10)}

    def added(params, rounds):
        _, metrics = model.loss(params, batch, KEY, rounds)
        return sum(x for n, x in metrics.items() if n.startswith("distillation/"))

    grads = jax.jit(jax.grad(functools.partial(added, rounds=2)))(params)
    loop = grads["blocks"]["loop"]
    assert float(jnp.abs(loop["cells"][0]).sum()) > 0
    assert float(jnp.abs(loop["cells"][1]).sum()) == float(jnp.abs(loop["gate"][1])) == 0
    _, metrics = jax.eval_shape(functools.partial(model.loss, rounds=1), params, batch, KEY)
    assert set(metrics) == {
        f"loss/{name}" for name in FEW_PREDICTED
    }  # no earlier exit than one round


def test_ponder_costs_the_rounds_that_cells_run():
    module = small_module(streams=FEW, halting="learned", rounds=3)
    model = small_model(module=module, ponder=0.5)
    params = make_params(model)
    loop = params["blocks"]["loop"]
    halt = jnp.array([[0.0, 1.0, 5.0], [-2.0, 0.5, 5.0]])
    loop = {**loop, "halt": halt, "halt_token": 0 * loop["halt_token"]}
    params = {**params, "blocks": {**params["blocks"], "loop": loop}}
    loss, metrics = jax.jit(functools.partial(model.loss, rounds=3))(params, small_batch(), KEY)
    goes_on = 1 - 1 / (1 + np.exp(-np.asarray(halt)))
    used = (1 + goes_on[:, 0] + goes_on[:, 0] * goes_on[:, 1]).mean()
    assert float(metrics["rounds_used"]) == pytest.approx(used, rel=1e-5)
    assert float(metrics["loss/ponder"]) == pytest.approx(0.5 * used, rel=1e-5)
    errors = sum(float(metrics[f"loss/{name}"]) for name in FEW_PREDICTED)
    assert float(loss) == pytest.approx(errors + 0.5 * used, rel=1e-5)


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm"])
def test_learned_balances_train_beside_the_model(kind):
    model = small_model(balance=kind, module=small_module(streams=FEW))
    params = random_like(jax.eval_shape(model.init, jax.random.key(0)))

    def loss(balance):
        return model.loss({**params, "balance": balance}, small_batch(), KEY, 1)

    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.balance.init())
    (value, metrics), (grads,) = found[0], found[1].values()
    assert [float(metrics[f"weight/{name}"]) for name in FEW_PREDICTED] == pytest.approx([1.0] * 3)
    errors = [float(metrics[f"loss/{name}"]) for name in FEW_PREDICTED]
    assert float(value) == pytest.approx(sum(errors))
    assert (jnp.abs(grads) > 0).all()


def test_seeds_may_be_mapped_over():
    model = plain()
    params = jax.eval_shape(jax.vmap(model.init), jax.random.split(KEY, 2))
    many = jax.tree.map(lambda *x: jnp.stack(x), small_batch(seed=0), small_batch(seed=1))
    loss = jax.vmap(functools.partial(model.loss, rounds=2))
    found, metrics = jax.eval_shape(loss, params, many, jax.random.split(KEY, 2))
    assert found.shape == (2,) and {x.shape for x in metrics.values()} == {(2,)}


def test_a_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="loss.noised_fraction = 1.5: expected 0 to 1"):
        small_model(noised_fraction=1.5)
