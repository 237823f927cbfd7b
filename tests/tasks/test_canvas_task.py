"""From a config to a canvas model: what is built, and what is refused by its key."""

import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from roam_jax.canvas.topology import segment_sizes
from roam_jax.contracts import ArraySpec
from roam_jax.data.scene_random import VALIDATION_SEED
from roam_jax.tasks.build import build
from roam_jax.tasks.canvas_task import NO_DECAY, scene_model
from roam_jax.tasks.experiment import Trainable
from roam_jax.tasks.scene_build import SceneExperiment, scene_experiment
from roam_jax.tasks.sketch import sketch
from roam_jax.train import names, sharding
from tests.tasks.scenes import ROOT, toy_config

OUTPUTS = ("future_video", "future_proprio", "reward", "answer")


def test_a_config_builds_what_a_run_needs():
    experiment = build(toy_config())
    assert isinstance(experiment, SceneExperiment) and isinstance(experiment, Trainable)
    spec = ArraySpec((2,), np.dtype(np.uint32))
    assert experiment.task.batch_spec == {"scene_seed": spec, "scene_index": spec}
    batch = next(experiment.batches())
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
        n: (s.shape, s.dtype) for n, s in experiment.task.batch_spec.items()
    }
    assert experiment.model.predicted == OUTPUTS
    assert experiment.splits["val"].describe() == {"scene": "multimodal", "seed": VALIDATION_SEED}
    found = experiment.provenance()
    assert found["data"]["train"] == {"scene": "multimodal", "seed": 0}
    assert found["fingerprints"] == {} and found["packages"]["jax"] == jax.__version__
    ahead = [experiment.flops_per_step(n) for n in (1, 2, 3)]
    assert ahead[2] - ahead[1] == ahead[1] - ahead[0] > 0


@pytest.mark.parametrize(
    "variant", ["", "distinct", "narrow", "stack", "distilled", "halting", "tiny"]
)
def test_every_variant_of_the_toy_has_120_cells_and_a_loss(variant):
    plan = sketch(toy_config(variant))
    layout = plan.model.module.layout
    assert segment_sizes(layout).sum() == 120 and plan.time is None and not plan.has_backbone
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    loss, metrics = jax.eval_shape(
        lambda p, b: plan.task.loss(p, b, jax.random.key(0), 1),
        params,
        {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in plan.task.batch_spec.items()},
    )
    assert loss.shape == () and {f"loss/{name}" for name in OUTPUTS} <= set(metrics)


@pytest.mark.parametrize("variant", ["", "tiny"])
def test_contact_detection_builds(variant):
    model = sketch(toy_config(variant, "canvas_contact")).model
    assert model.regions["contact"].features == 2 and "contact" in model.predicted


def test_variants_change_values_and_sizes_as_they_say():
    toy, distinct, narrow = (toy_config(v) for v in ("", "distinct", "narrow"))
    assert (toy.model.depth, toy.loop.rounds, toy.loop.gate) == (3, 4, "sigmoid")
    assert (distinct.model.depth, distinct.loop.rounds, distinct.model.width) == (12, 1, 64)
    assert (narrow.model.depth, narrow.loop.rounds, narrow.model.width) == (12, 1, 32)
    assert toy_config("stack").loop.over == "stack"
    assert toy_config("distilled").loop.self_distillation
    assert toy_config("halting").loop.halting == "learned"
    for file in ("canvas_toy", "canvas_contact"):
        with pytest.raises(ValueError, match=f"{file}.py has no variant 'big'"):
            toy_config("big", file)


def test_what_is_not_predicted_is_not_on_the_canvas():
    config = toy_config()
    config.canvas.predict = ("answer", "reward")
    model = scene_model(config)
    assert model.predicted == ("reward", "answer") and model.diffused == ()
    assert "future_video" not in model.module.layout.regions
    assert segment_sizes(model.module.layout).sum() == 120 - 32 - 2


def test_weights_and_decoders_of_regions():
    config = toy_config()
    config.loss.weights = (("answer", 2), ("reward", 0.5))
    config.model.decoder, config.model.region_decoders = "linear", (("answer", "attention"),)
    model = scene_model(config)
    assert model.balance.weights == {"answer": 2.0, "reward": 0.5}
    assert model.module.layout.region_spec("reward").loss_weight == 0.5
    assert {n: model.regions[n].decoder for n in OUTPUTS} == {
        **dict.fromkeys(OUTPUTS, "linear"), "answer": "attention",
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["isolated", "hub_spoke", "causal", "cortical_hierarchy", "multi_agent", "local_window",
             "random_matched", "causal_temporal"]
)  # fmt: skip
def test_any_topology_may_lie_on_the_canvas(kind):
    config = toy_config()
    config.topology.kind = kind
    model = scene_model(config)
    jax.eval_shape(model.init, jax.random.key(0))
    reads = model.module.topology.to_attention_mask(model.module.layout)
    assert 120 <= np.count_nonzero(reads) < 120**2


def test_what_decays_is_matrices():
    task = scene_experiment(toy_config()).task
    tree = names.flatten(jax.eval_shape(task.init, jax.random.key(0)))
    decaying = {n.split("/")[-1] for n in tree if not names.matches(n, NO_DECAY)}
    assert decaying == {"kernel", "embedding"}
    specs = sharding.match_rules(
        scene_experiment(toy_config()).rules,
        names.unflatten(tree),
        axis_sizes={"data": 2, "fsdp": 2},
    )
    assert names.flatten(specs)["blocks/loop/gate"] == jax.sharding.PartitionSpec()


def test_initial_losses_of_gradnorm_are_those_of_predicting_nothing():
    config = toy_config()
    config.loss.balance = "gradnorm"
    initial = scene_model(config).balance.initial
    assert initial["answer"] == pytest.approx(math.log(10))
    assert 0 < initial["reward"] < 1 and 0.2 < initial["future_video"] < 1


def refusals():
    yield "loop.rounds", 0, "loop.rounds = 0: expected at least 1"
    yield "model.depth", 0, "model.depth = 0: expected at least 1"
    yield "model.width", 20, "model.width = 20: expected a multiple of 8"
    yield "model.decoder", "atention", "model.decoder = 'atention'.*did you mean 'attention'"
    own = (("answr", "mlp"),)
    yield "model.region_decoders", own, "model.region_decoders = 'answr'.*did you mean 'answer'"
    own = (("question", "mlp"),)
    yield "model.region_decoders", own, "model.region_decoders = 'question': expected one of"
    own = (("answer", "big"),)
    yield "model.region_decoders", own, "model.region_decoders: answer = 'big': expected one of"
    yield "model.region_decoders", ("answer",), r"expected \(\(region, str\), ...\)"
    yield "canvas.predict", ("anwser",), "canvas.predict = 'anwser'.*did you mean 'answer'"
    yield "canvas.predict", ("question",), "canvas.predict = 'question': expected one of"
    yield "canvas.predict", ("answer", "answer"), "canvas.predict = .*expected each region once"
    yield "canvas.geometry", "round", "canvas.geometry = 'round'"
    yield "loss.weights", (("anser", 1.0),), "loss.weights = 'anser'.*did you mean 'answer'"
    yield "loss.weights", (("answer", 0.0),), "loss.weights: answer = 0.0: .*canvas.predict leaves"
    yield "loss.weights", (("answer", "x"),), r"expected \(\(region, float\), ...\)"
    yield "loss.decoder_only", ("anser",), "loss.decoder_only = 'anser'"
    yield "loss.noised_fraction", 2.0, "loss.noised_fraction = 2.0: expected 0 to 1"
    yield "loss.ponder", -1.0, "loss.ponder = -1.0"
    yield "loss.balance", "gradnrm", "loss.balance = 'gradnrm'"
    yield "data.scene", "multimodl", "data.scene = 'multimodl'.*did you mean 'multimodal'"
    yield "topology.kind", "ring", "topology.kind = 'ring'"
    yield "topology.backbone", "declared", "topology.backbone = 'declared': train.task = canvas has"
    yield "topology.backbone_reads_new", 0.1, "topology.backbone_reads_new = 0.1: train.task = can"
    yield "canvas.reward_weight", 1.0, "canvas.reward_weight = 1.0: train.task = canvas has no"
    yield "decoder.blocks", (0,), r"decoder.blocks = \(0,\): .*expected \(-1,\)"
    yield "freeze", "half", "freeze = 'half': .*expected 'full'"
    yield "backbone.path", "tiny", "backbone.path = 'tiny': .*expected ''"
    yield "seed", VALIDATION_SEED, "seed = 4294967295"
    yield "train.batch_size", 0, "train.batch_size = 0: expected at least 1"
    yield "mesh.data", 0, "mesh.data = 0: expected at least 1"
    yield "loop.curriculum", (3, 2), "loop.curriculum"


@pytest.mark.parametrize("key, value, message", list(refusals()))
def test_bad_values_are_refused_by_key(key, value, message):
    config = toy_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        scene_experiment(config)


def test_gradnorm_is_refused_where_it_has_no_gradients():
    config = toy_config()
    config.loss.balance, config.loss.decoder_only = "gradnorm", ("answer",)
    with pytest.raises(ValueError, match="gradnorm.*decoder_only"):
        scene_model(config)
    config.loss.decoder_only, config.canvas.predict = (), ("answer",)
    with pytest.raises(ValueError, match="gradnorm.*one predicted region"):
        scene_model(config)


def test_a_model_is_built_without_what_reads_episodes():
    """On a machine for experiments neither grain nor tensorflow need be there."""
    code = (
        "import sys\n"
        "import roam_jax.tasks.scene_build\n"
        "print([m for m in ('grain', 'tensorflow', 'tensorboardX', 'orbax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
