"""Evaluation of a canvas model: figures against predictions by hand, gradients, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.data.scene_batches import validation_batch
from roam_jax.evaluate.canvas import CanvasEvaluation
from roam_jax.evaluate.report import format_report
from roam_jax.evaluate.windows import SEED, window_noise
from roam_jax.tasks.build import build
from tests.conftest import ROOT

EXAMPLES, ROUNDS = 4, 2
# Pure noise and two buckets of timesteps.
LEVELS = ((999, 1000), (0, 500), (500, 1000))


def make_config(**changes):
    config = load_config(str(ROOT / "configs/canvas_toy.py:tiny"))
    config.data.questions = "chain"
    config.eval.windows, config.eval.batch_size = EXAMPLES, 2
    config.eval.buckets, config.eval.resamples = 2, 20
    for key, value in changes.items():
        section, leaf = key.split("__")
        config[section][leaf] = value
    return config


def random_params(experiment, *, seed):
    """Around 1 for the scales of norms, around 0 for all else; nothing is compiled."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))

    def draw(path, leaf):
        values = 0.2 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def experiment():
    return build(make_config())


@pytest.fixture(scope="module")
def params(experiment):
    """Parameters in which everything matters: an untrained decoder says nothing."""
    return random_params(experiment, seed=0)


@pytest.fixture(scope="module")
def evaluation(experiment):
    return CanvasEvaluation(experiment, extrapolate="last")


@pytest.fixture(scope="module")
def figures(evaluation, params):
    return evaluation.report(params, rounds=(ROUNDS, 3))["val"]


@pytest.fixture(scope="module")
def by_hand(experiment, params):
    """From a noise level to cells, velocities and outputs after `ROUNDS` rounds, as one batch."""
    model = experiment.model
    cells = jax.device_get(jax.jit(model.examples)(validation_batch(0, EXAMPLES)))
    alphas = model.schedule.alphas_cumprod
    apply = jax.jit(
        lambda data, timesteps: model.module.apply(
            {"params": params}, data, timesteps, batch=EXAMPLES, rounds=ROUNDS
        )
    )

    def predict(level):
        low, high = LEVELS[level]
        data, timesteps, velocities = {}, {}, {}
        for number, name in enumerate(model.diffused):
            index, shape = np.arange(EXAMPLES, dtype=np.int32), cells[name].shape[1:]
            stream = number * len(LEVELS) + level
            drawn = window_noise(index, stream, low, high, shape=shape)
            timesteps[name], noise = map(np.asarray, drawn)
            signal = np.sqrt(alphas[timesteps[name]])[:, None, None]
            sigma = np.sqrt(1 - signal**2)
            data[name] = np.float32(signal * cells[name] + sigma * noise)
            velocities[name] = signal * noise - sigma * cells[name]
        for name, region in model.regions.items():
            if region.holds_data and not region.objective:
                data[name] = cells[name]
        outputs, info = jax.device_get(apply(data, timesteps))
        return cells, velocities, outputs, info

    return predict


def test_errors_at_pure_noise_by_hand(figures, by_hand):
    cells, _, outputs, _ = by_hand(0)
    assert figures["examples"] == EXAMPLES
    found = figures["rounds"][str(ROUNDS)]["regions"]
    for name in ("future_video", "future_proprio"):
        # The velocity at pure noise is -x0.
        expected = np.square(outputs[name] + cells[name]).mean()
        assert found[name]["error"]["mean"] == pytest.approx(expected, rel=1e-4)
        zero = figures["baselines"][name]["error"]["mean"]
        assert zero == pytest.approx(np.square(cells[name]).mean(), rel=1e-5)
    expected = np.square(outputs["reward"][..., 0] - cells["reward"]).mean()
    assert found["reward"]["error"]["mean"] == pytest.approx(expected, rel=1e-4)
    zero = figures["baselines"]["reward"]["error"]["mean"]
    assert zero == pytest.approx(np.square(cells["reward"]).mean(), rel=1e-5)


@pytest.mark.parametrize("level", [1, 2])
def test_errors_by_timestep_by_hand(figures, by_hand, level):
    _, velocities, outputs, _ = by_hand(level)
    found = figures["rounds"][str(ROUNDS)]["regions"]
    for name, velocity in velocities.items():
        bucket = found[name]["timesteps"]["buckets"][level - 1]
        assert bucket["timesteps"] == [LEVELS[level][0], LEVELS[level][1] - 1]
        expected = np.square(outputs[name] - velocity).mean()
        assert bucket["mse"]["mean"] == pytest.approx(expected, rel=1e-4)
        assert bucket["zero_mse"] == pytest.approx(np.square(velocity).mean(), rel=1e-4)


def test_answers_by_hand(figures, by_hand):
    cells, _, outputs, _ = by_hand(0)
    logits, targets = np.float64(outputs["answer"]), cells["answer"]
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    right = np.take_along_axis(chances, targets[..., None], axis=-1)[..., 0]
    found = figures["rounds"][str(ROUNDS)]["regions"]["answer"]
    assert found["error"]["mean"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    hits = logits.argmax(axis=-1) == targets
    assert found["accuracy"]["mean"] == pytest.approx(hits.mean())
    assert [cell["name"] for cell in found["cells"]] == ["1 hop", "2 hops", "3 hops", "4 hops"]
    for i, cell in enumerate(found["cells"]):
        assert cell["accuracy"]["mean"] == pytest.approx(hits[:, i].mean())


def test_every_number_of_rounds(figures, evaluation, by_hand):
    *_, info = by_hand(0)
    errors = {n: one["regions"]["answer"]["error"]["mean"] for n, one in figures["rounds"].items()}
    assert errors["2"] != errors["3"]
    marked = {n: one["extrapolated"] for n, one in figures["rounds"].items()}
    assert marked == {"2": False, "3": True}
    # Of each region, thought included, after each round a number for each block. The batches of
    # the evaluation are other than the one by hand.
    measures = figures["rounds"][str(ROUNDS)]["measures"]
    assert set(measures) == {"gated_step", "residual", "cosine"}
    for name, found in measures["residual"].items():
        np.testing.assert_allclose(np.array(found).T, info["residual"][name], rtol=0.3)
    assert "thought" in measures["residual"]
    assert evaluation.rounds(None) == (1, ROUNDS)


def test_gradient_cosines_by_hand(figures, experiment, params):
    model = experiment.model

    @jax.jit
    def gradients(first):
        seed, index = map(jnp.asarray, validation_batch(0, 2).values())
        index = index + first.astype(jnp.uint32)
        cells = model.examples({"scene_seed": seed, "scene_index": index})
        noised = model.draw(jax.random.fold_in(jax.random.key(SEED), first), cells)

        def losses(blocks):
            outputs, _ = model.predict({**params, "blocks": blocks}, noised, rounds=ROUNDS)
            return model.mean_errors(outputs, noised)

        return jax.jacrev(losses)(params["blocks"])

    batches = [gradients(jnp.int32(first)) for first in (0, 2)]
    flat = {
        name: sum(
            np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(batch[name])])
            for batch in batches
        )
        for name in model.predicted
    }
    found = figures["gradients"]
    assert found["rounds"] == ROUNDS and len(found["cosines"]) == 6
    for name, norm in found["norms"].items():
        assert norm == pytest.approx(np.linalg.norm(flat[name]) / 2, rel=1e-4)
    for pair, cosine in found["cosines"].items():
        a, b = (flat[name] / np.linalg.norm(flat[name]) for name in pair.split("|"))
        assert cosine == pytest.approx(a @ b, abs=1e-4)


def test_training_curves_show_the_figures_of_the_report(figures, evaluation, params):
    metrics = evaluation.metrics(params)
    trained = figures["rounds"][str(ROUNDS)]["regions"]
    for name, one in trained.items():
        assert metrics[name] == pytest.approx(one["error"]["mean"], rel=1e-5)
    assert metrics["answer/accuracy"] == trained["answer"]["accuracy"]["mean"]
    for pair, cosine in figures["gradients"]["cosines"].items():
        assert metrics[f"gradient_cosine/{pair}"] == pytest.approx(cosine, abs=1e-5)
    assert set(metrics) == {
        *trained, "answer/accuracy",
        *(f"gradient_cosine/{pair}" for pair in figures["gradients"]["cosines"]),
    }  # fmt: skip


def test_pictures_and_table(figures, evaluation, params, tmp_path):
    report = {"task": "canvas", "splits": {"val": json.loads(json.dumps(figures))}}
    evaluation.draw(params, report["splits"], tmp_path / "7", rounds=(1, ROUNDS))
    assert {path.name for path in tmp_path.iterdir()} == {
        "7_cosines.png", "7_examples.png", "7_exits.png", "7_rounds.png",
    }  # fmt: skip
    text = format_report(report)
    assert text.startswith("val: 4 examples\n  future_video: velocity error at pure noise")
    mean = figures["rounds"]["3"]["regions"]["reward"]["error"]["mean"]
    assert f"    rounds = 3 *     {mean:.4f} [" in text
    share = figures["baselines"]["answer"]["cells"][0]["accuracy"]["mean"]
    assert f"{share:.1%}" in next(line for line in text.splitlines() if "most frequent" in line)
    assert "cosine of loss gradients at the blocks" in text


def test_cells_that_stop_use_fewer_rounds():
    changes = {"loop__halting": "learned", "eval__exit_threshold": 0.9}
    experiment = build(make_config(**changes, canvas__predict=("answer",)))
    evaluation = CanvasEvaluation(experiment)
    params = jax.jit(experiment.model.init)(jax.random.key(0))
    found = evaluation.report(params, rounds=(ROUNDS,))["val"]["rounds"][str(ROUNDS)]
    # At the start each of two rounds has half of the mass: no cell has 0.9 stopped after one.
    assert set(found["rounds_used"].values()) == {2.0}
    params["blocks"]["loop"]["halt"] = params["blocks"]["loop"]["halt"] + 10.0
    found = evaluation.report(params, rounds=(ROUNDS,))["val"]
    assert set(found["rounds"][str(ROUNDS)]["rounds_used"].values()) == {1.0}
    # With one region there is nothing to compare its gradient with.
    assert found["gradients"]["cosines"] == {}
    metrics = evaluation.metrics(params)
    assert metrics["rounds_used/thought"] == 1 and "gradient_cosine/a|b" not in metrics


BAD = {
    "eval.windows = -1: expected 0 .1024 examples. or more": {"eval__windows": -1},
    "eval.batch_size = 0: expected at least 1": {"eval__batch_size": 0},
    "eval.buckets = 0: expected 1..1000": {"eval__buckets": 0},
    "eval.exit_threshold = 0.5 with loop.halting = 'none'": {"eval__exit_threshold": 0.5},
    "eval.exit_threshold = 1.5: expected a number above 0 and at most 1": {
        "eval__exit_threshold": 1.5,
        "loop__halting": "learned",
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        CanvasEvaluation(build(make_config(**BAD[message])))


def test_more_rounds_than_were_trained(experiment):
    with pytest.raises(ValueError, match="rounds = 3: trained with loop.rounds = 2"):
        CanvasEvaluation(experiment).rounds((1, 3))
