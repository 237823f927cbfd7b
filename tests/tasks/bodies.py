"""Two small bodies in hand-made worlds, policies for them, and demonstrations of noise."""

import dataclasses

import numpy as np

from roam_jax.cli.arguments import load_config
from roam_jax.morphology import JOINT_NUMBERS, JOINTS, ROOT, Joint, Morphology, VectorStream
from roam_jax.morphology import WorldSpec as Spec
from roam_jax.tasks.clone_task import clone_model
from tests.conftest import ROOT as REPOSITORY

CHAIN = Morphology(
    "chain",
    (Joint("lift", ROOT, "slide", 0.0, 0.5, 0.2), Joint("elbow", 0, "hinge", -1.0, 2.0, 0.3)),
)
FORK = Morphology(
    "fork",
    (
        Joint("waist", ROOT, "hinge", -2.0, 2.0, 0.1),
        Joint("left", 0, "hinge", -1.0, 1.0, 0.2),
        Joint("wrist", 1, "hinge", -1.0, 1.0, 0.2),
        Joint("right", 0, "slide", -0.1, 0.1, 0.2),
    ),
)


def spec_of(body, *, goals=1):
    streams = (
        VectorStream(JOINTS, JOINT_NUMBERS, (1.0, 2.0, 0.5), len(body)),
        VectorStream("tip", ("x", "y"), (0.5, 0.5)),
        VectorStream("goal", ("x", "y"), (0.5, 0.5), goals),
    )
    return Spec("reach", body, streams, period=0.1, steps=5)


SPECS = {body.name: spec_of(body) for body in (CHAIN, FORK)}


def clone_config(**changes):
    """The tiny config, with {"section.leaf": value} changed."""
    config = load_config(str(REPOSITORY / "configs/mujoco_bc.py:tiny"))
    config.model.depth = 1
    for key, value in changes.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return config


def small_policy(specs=SPECS, **changes):
    return clone_model(clone_config(**changes), specs)


@dataclasses.dataclass
class Noise:
    """Demonstrations of random numbers: episodes of the given lengths."""

    spec: Spec
    lengths: tuple = (5, 3, 4)
    seed: int = 0
    fingerprint: str = "noise"

    def __post_init__(self):
        rng, count = np.random.default_rng(self.seed), sum(self.lengths)
        self.observations = {
            stream.name: rng.standard_normal((count, *stream.shape), np.float32)
            for stream in self.spec.streams
        }
        shape = (count, len(self.spec.morphology))
        self.actions = rng.uniform(-1, 1, shape).astype(np.float32)
        self.episode = np.repeat(np.arange(len(self.lengths)), self.lengths)


def noise(specs=SPECS):
    return {body: Noise(spec, seed=place) for place, (body, spec) in enumerate(specs.items())}
