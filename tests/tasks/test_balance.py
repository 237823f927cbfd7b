"""Weights of region losses: closed forms, fixed points, gradients against numpy, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from roam_jax.tasks.balance import (
    GRADIENT_SCALE,
    SPEED,
    Balance,
    gradient_cosines,
    gradient_norms,
    pair_matrix,
)

NAMES = ("video", "answer", "reward")
LOSSES = {"video": 0.5, "answer": 2.0, "reward": 0.125}
NORMS = {"video": 4.0, "answer": 1.0, "reward": 0.5}
INITIAL = {"video": 1.0, "answer": 2.0, "reward": 0.5}


def arrays(values):
    return {name: jnp.float32(value) for name, value in values.items()}


def vector(values):
    return np.array([values[name] for name in NAMES])


def train(balance, *, losses, norms=None, steps=400, lr=1e-3):
    """Parameters of the balance after Adam under losses that stay."""
    tx = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: balance(p, losses(p), norms and norms(p))[0])(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = balance.init()
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    return params


def test_fixed_is_the_weighted_sum():
    balance = Balance("fixed", NAMES, weights={"answer": 0.25, "reward": 0.0})
    assert balance.init() == {}
    total, metrics = balance({}, arrays(LOSSES))
    assert total == 0.5 + 0.25 * 2.0
    assert metrics == {"weight/video": 1.0, "weight/answer": 0.25, "weight/reward": 0.0}


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm"])
def test_weights_start_as_the_config_gives_them(kind):
    balance = Balance(kind, NAMES, weights={"answer": 0.25}, initial=INITIAL)
    total, metrics = balance(balance.init(), arrays(LOSSES), arrays(NORMS))
    np.testing.assert_allclose(total, 0.5 + 0.25 * 2.0 + 0.125, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight/answer"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight/reward"], 1, rtol=1e-6)


def test_uncertainty_in_closed_form_and_where_it_settles():
    balance = Balance("uncertainty", NAMES, weights={"answer": 0.25})
    params = {"log_variance": jnp.array([0.5, -0.25, 1.0]) / SPEED}
    s, loss, fixed = np.array([0.5, -0.25, 1.0]), vector(LOSSES), np.array([1, 0.25, 1])
    total, metrics = balance(params, arrays(LOSSES))
    np.testing.assert_allclose(total, np.sum(fixed * (np.exp(-s) * loss + s)), rtol=1e-6)
    np.testing.assert_allclose(metrics["weight/answer"], 0.25 * np.exp(0.25), rtol=1e-6)
    gradient = jax.grad(lambda p: balance(p, arrays(LOSSES))[0])(params)["log_variance"]
    np.testing.assert_allclose(
        gradient, GRADIENT_SCALE * fixed * (1 - np.exp(-s) * loss), rtol=1e-5
    )
    # The least of exp(-s) L + s: each region's weight is 1 / L.
    found = train(balance, losses=lambda _: arrays(LOSSES))
    _, metrics = balance(found, arrays(LOSSES))
    weights = [metrics[f"weight/{name}"] for name in NAMES]
    np.testing.assert_allclose(weights, fixed / loss, rtol=0.01)


def test_a_region_without_a_noised_cell_moves_no_variance():
    balance = Balance("uncertainty", NAMES)
    losses = arrays({**LOSSES, "reward": 0.0})
    gradient = jax.grad(lambda p: balance(p, losses)[0])(balance.init())["log_variance"]
    assert gradient[2] == 0 and np.all(gradient[:2] != 0)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_moves_as_in_the_paper(alpha):
    """Its term, sum |w_i n_i - mean(w n) r_i^alpha| with the target fixed, in float64."""
    balance = Balance("gradnorm", NAMES, initial=INITIAL, alpha=alpha)
    theta = np.array([0.3, -0.2, 0.1])
    params = {"log_weight": jnp.asarray(theta / SPEED, jnp.float32)}
    loss, norm, initial = vector(LOSSES), vector(NORMS), vector(INITIAL)
    soft = np.exp(theta) / np.exp(theta).sum()
    weights = 3 * soft
    rate = (loss / initial) / np.mean(loss / initial)
    mean = np.mean(weights * norm)
    sign = np.sign(weights * norm - mean * rate**alpha)
    jacobian = 3 * (np.diag(soft) - np.outer(soft, soft))
    expected = GRADIENT_SCALE * jacobian @ (sign * norm) / mean
    total, metrics = balance(params, arrays(LOSSES), arrays(NORMS))
    np.testing.assert_allclose(total, np.sum(weights * loss), rtol=1e-6)
    found = [metrics[f"weight/{name}"] for name in NAMES]
    np.testing.assert_allclose(found, weights, rtol=1e-6)
    gradient = jax.grad(lambda p: balance(p, arrays(LOSSES), arrays(NORMS))[0])(params)
    np.testing.assert_allclose(gradient["log_weight"], expected, rtol=1e-4, atol=1e-8)


def test_gradnorm_settles_at_equal_norms():
    """With alpha = 0 and norms that stay, w_i n_i are equal and weights sum to the regions."""
    balance = Balance("gradnorm", NAMES, weights={"answer": 0.25}, initial=INITIAL)
    found = train(balance, losses=lambda _: arrays(LOSSES), norms=lambda _: arrays(NORMS))
    _, metrics = balance(found, arrays(LOSSES), arrays(NORMS))
    weights = np.array([metrics[f"weight/{name}"] for name in NAMES]) / [1, 0.25, 1]
    inverse = 1 / vector(NORMS)
    np.testing.assert_allclose(weights, 3 * inverse / inverse.sum(), rtol=0.02)


def test_the_model_does_not_see_what_moves_the_weights():
    """d total / d loss is the weight, whatever norms and progress do with the same losses."""
    balance = Balance("gradnorm", NAMES, initial=INITIAL, alpha=1.0)
    params = {"log_weight": jnp.array([0.3, -0.2, 0.1]) / SPEED}

    def total(scale):
        losses = {name: scale * value for name, value in arrays(LOSSES).items()}
        norms = {name: scale * value for name, value in arrays(NORMS).items()}
        return balance(params, losses, norms)

    slope = jax.grad(lambda scale: total(scale)[0])(1.0)
    np.testing.assert_allclose(slope, total(1.0)[0], rtol=1e-6)


def quadratics(cells):
    a, b = cells["a"], cells["b"]
    return {"video": jnp.sum(a**2) + 3 * jnp.sum(b), "answer": jnp.sum(a), "reward": -a[0] * 1.0}


CELLS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
# By hand, columns a0, a1, b.
GRADIENTS = {"video": [2, -4, 3], "answer": [1, 1, 0], "reward": [-1, 0, 0]}


def test_gradient_norms_and_cosines():
    norms = jax.jit(lambda cells: gradient_norms(quadratics, cells))(CELLS)
    found_norms, cosines = jax.jit(lambda cells: gradient_cosines(quadratics, cells))(CELLS)
    for name, gradient in GRADIENTS.items():
        np.testing.assert_allclose(norms[name], np.linalg.norm(gradient), rtol=1e-6)
        np.testing.assert_allclose(found_norms[name], np.linalg.norm(gradient), rtol=1e-6)
    assert set(cosines) == {"answer|reward", "answer|video", "reward|video"}
    for pair, cosine in cosines.items():
        a, b = (np.array(GRADIENTS[name]) for name in pair.split("|"))
        expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(cosine, expected, rtol=1e-6)
    pairs = {pair: float(cosine) for pair, cosine in cosines.items()}
    matrix = pair_matrix(pairs, ("video", "answer", "reward"))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert matrix[0, 2] == pairs["reward|video"] and matrix[1, 1] == 1


def test_norms_carry_no_gradient_and_none_is_no_cosine():
    slope = jax.grad(lambda cells: sum(gradient_norms(quadratics, cells).values()))(CELLS)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(slope))
    _, cosines = gradient_cosines(lambda x: {"a": jnp.sum(x), "b": 0.0 * jnp.sum(x)}, jnp.ones(2))
    assert cosines == {"a|b": 0.0}


def test_route():
    balance = Balance("fixed", NAMES, decoder_only=("reward",))

    def loss(cells, region):
        return jnp.sum(balance.route(cells, region) ** 2)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(2), "video"), [2, 2])
    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(2), "reward"), [0, 0])


BAD = {
    "loss.balance = 'gradnrom': expected one of fixed, uncertainty, gradnorm; did you mean "
    "'gradnorm'?": {"kind": "gradnrom"},
    "loss.decoder_only = 'vdeo': expected one of video, answer, reward": {
        "decoder_only": ("vdeo",)
    },
    "loss.weights = 'vdeo': expected one of": {"weights": {"vdeo": 1.0}},
    "loss.weights: video = -1.0: expected a finite number of 0 or more": {
        "weights": {"video": -1.0}
    },
    "loss.gradnorm_alpha = -0.5: expected a finite number of 0 or more": {"alpha": -0.5},
    r"'gradnorm' with loss.decoder_only = \('reward',\): the losses of these regions have no "
    "gradient": {"kind": "gradnorm", "decoder_only": ("reward",)},
    r"'gradnorm' with one predicted region \(video\): there is no other": {
        "kind": "gradnorm",
        "names": ("video",),
    },
    "'gradnorm': initial loss of answer = 0.0, expected a finite number above 0": {
        "kind": "gradnorm",
        "initial": {"video": 1.0},
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        Balance(**{"kind": "fixed", "names": NAMES, **BAD[message]})


def test_losses_and_norms_that_are_not_of_the_regions():
    balance = Balance("gradnorm", NAMES, initial=INITIAL)
    with pytest.raises(ValueError, match="losses of video: expected video, answer, reward"):
        balance(balance.init(), arrays({"video": 1.0}), arrays(NORMS))
    with pytest.raises(ValueError, match="norms of no region: expected video, answer, reward"):
        balance(balance.init(), arrays(LOSSES))
