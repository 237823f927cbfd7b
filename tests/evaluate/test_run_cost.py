"""Tokens against cells counted by hand, FLOPs against closed forms."""

import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.evaluate.run_cost import flops_per_step, tokens_per_step
from roam_jax.model.sizes import step_flops
from roam_jax.tasks.build import build

# Latent frames of 16 patches (64x64 pixels, the VAE's factor 8, patches of 2), one token of text.
VIDEO = 3 * 16 + 1
ACTIONS = 4 + 4


def experiment_of(name, rows):
    config = load_config(name)
    config.train.batch_size = rows
    return build(config)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("configs/bridge_3loop.py:tiny", VIDEO + ACTIONS),
        ("configs/tiny_backbone.py", VIDEO),
        ("configs/tiny_vae.py", 0),
    ],
)
def test_tokens_are_cells_of_all_rows(name, cells):
    assert tokens_per_step(experiment_of(name, 8)) == 8 * cells


def test_a_canvas_model_is_counted_in_closed_form():
    experiment = experiment_of("configs/canvas_toy.py:tiny", 6)
    assert tokens_per_step(experiment) == 6 * 120  # docs/scenes.md
    expected = 6 * step_flops(experiment.model.module, rounds=2)
    assert flops_per_step(experiment)(2) == expected


def test_every_body_of_a_clone_has_a_share_of_the_rows():
    experiment = experiment_of("configs/mujoco_bc.py:tiny", 8)
    bodies = [model.module.layout for model in experiment.model.bodies.values()]
    cells = [sum(map(body.region_numel, body.regions)) for body in bodies]
    assert tokens_per_step(experiment) == 8 // len(bodies) * sum(cells)


def test_a_graft_is_traced_without_what_is_computed_again():
    """Three rounds cost two passes through the blocks more than one."""
    counted = flops_per_step(experiment_of("configs/bridge_3loop.py:tiny", 4))
    one, two, three = map(counted, (1, 2, 3))
    assert three - two == two - one > 0
