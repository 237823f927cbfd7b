"""A small experiment: five episodes of noise, random weights of a very small CogVideoX."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from roam_jax.cli.arguments import load_config
from roam_jax.evaluate.graft import GraftEvaluation
from roam_jax.evaluate.model_directory import write_model_directory
from roam_jax.tasks.build import build
from roam_jax.train import names, optim
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.state import TrainState, partition
from roam_jax.train.workdir import Workdir, plain
from tests.conftest import ROOT
from tests.data import rlds
from tests.tasks.models import fresh_params

SIZE, TEXT = 16, 512
# Stored steps of each episode; windows of 9 frames: 2 + 1 + 4 in train, 3 + 1 in val.
STEPS = {"train": (11, 10, 13), "val": (12, 10)}


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    """A dataset whose episodes have one, two or more windows."""
    return write_toy(tmp_path_factory.mktemp("toy") / "1.0.0", seed=0)


def write_toy(root, *, seed):
    splits = {"train": [], "val": []}
    for split, lengths in STEPS.items():
        for steps in lengths:
            splits[split].append(_episode(seed, steps))
            seed += 1
    text = tfds.features.Tensor(shape=(TEXT,), dtype=np.float32)
    features = rlds.bridge_features(SIZE, language_embedding=text)
    return rlds.write_dataset(root, splits, features)


def _episode(seed: int, steps: int):
    episode = rlds.StoredEpisode.random(seed, steps, size=SIZE)
    episode.embedding = np.random.default_rng(seed).normal(size=TEXT).astype(np.float32)
    return episode


@pytest.fixture
def config(weights, toy_root):
    """The tiny config on the toy data, with two rounds."""
    return make_config(weights, toy_root)


def make_config(weights, toy_root):
    config = load_config(str(ROOT / "configs/bridge_3loop.py:tiny"))
    config.backbone.path, config.data.root = str(weights), str(toy_root)
    config.data.image_size, config.data.encode_once = (SIZE, SIZE), 0
    config.loop.rounds = 2
    config.train.batch_size = 8
    config.eval.windows, config.eval.batch_size = 0, 3
    config.eval.buckets, config.eval.resamples = 2, 50
    return config


def make_params(experiment):
    """Parameters in which rounds and observations matter."""
    params = fresh_params(experiment)
    rng = np.random.default_rng(0)
    for rows in (params["blocks"]["loop"], params["graft"]["decoder"]["out"]):
        for name, value in rows.items():
            rows[name] = value + 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    return params


@pytest.fixture(scope="session")
def experiment(weights, toy_root):
    return build(make_config(weights, toy_root))


@pytest.fixture(scope="session")
def params(experiment):
    return make_params(experiment)


@pytest.fixture(scope="session")
def evaluation(experiment):
    """Shared, because it compiles once for each number of rounds."""
    return GraftEvaluation(experiment)


@pytest.fixture(scope="session")
def report(evaluation, params):
    return evaluation.report(params, rounds=(1, 2))


@pytest.fixture(scope="session")
def finished(experiment, params, tmp_path_factory):
    """A workdir with checkpoints of steps 5 and 6, as training leaves them."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return write_run(path, experiment, params, scales={5: 0.5, 6: 1.0})


def write_run(path, experiment, params, *, scales):
    """A workdir with checkpoints: step -> factor of what trained."""
    config, task = experiment.config, experiment.task
    workdir = Workdir(path)
    workdir.create(config, experiment.provenance())
    trainable, _ = partition(params, task.trainable)
    tx, _ = optim.make_optimizer(config.optim, steps=100, no_decay=task.no_decay)
    with Checkpoints(workdir.checkpoints, keep=2) as checkpoints:
        for step, scale in scales.items():
            scaled = jax.tree.map(lambda leaf, scale=scale: leaf * scale, trainable)
            state = TrainState(np.int32(step), scaled, jax.jit(tx.init)(scaled))
            checkpoints.save(step, state, data={}, config=plain(config))
    return workdir.path


@pytest.fixture
def exported(finished, experiment, params, tmp_path):
    """The model directory of step 6."""
    config, provenance = Workdir(finished).read()
    write_model_directory(
        tmp_path / "model",
        config=config,
        provenance=provenance,
        params_trainable=names.flatten(partition(params, experiment.task.trainable)[0]),
        step=6,
        command="test",
    )
    return tmp_path / "model"
