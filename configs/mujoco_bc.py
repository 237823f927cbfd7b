"""Behaviour cloning of several MuJoCo bodies by one looped canvas policy, with morphology tokens.

    python train.py --config configs/mujoco_bc.py --workdir runs/reach
    python train.py --config configs/mujoco_bc.py:push --workdir runs/push
    python eval.py --workdir runs/reach --metrics rollout

Every joint of a body is a cell, and every joint's next 8 actions are another; the kinematic tree
says who reads whom. Without a variant, four bodies learn to reach; `push` has the same bodies push
a prop to a goal, `walk` planar walkers with two to four legs. `pixels` sees frames in
place of prop and goal, and `tiny` is a few steps of a small policy, for tests.
"""

import ml_collections

from configs import defaults

VARIANTS = ("push", "walk", "pixels", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Reach with all bodies, or a variant of it."""
    config = defaults.get_config()
    config.data.environment = "reach"
    config.canvas.thought_cells = 4
    config.topology.kind = "kinematic_tree"
    config.model.width = 64
    config.model.depth = 2
    config.model.heads = 4
    config.loop.rounds = 3
    config.loop.gate = "sigmoid"
    config.train.task = "clone"
    config.optim.lr = 2e-3
    config.train.steps = 2000
    config.train.batch_size = 64
    config.train.log_every = 50
    if variant == "push":
        config.data.environment = "push"
        config.data.demonstrations = 1000
        config.train.steps = 4000
    elif variant == "walk":
        config.data.environment = "walk"
        config.train.steps = 3000
        config.train.batch_size = 48
    elif variant == "pixels":
        config.data.pixels = 48
    elif variant == "tiny":
        config.data.bodies = ("arm2", "arm3")
        config.data.demonstrations = 8
        config.data.chunk = 4
        config.canvas.thought_cells = 2
        config.model.width = 16
        config.model.heads = 2
        config.loop.rounds = 2
        config.optim.warmup_steps = 1
        config.train.steps = 4
        config.train.batch_size = 4
        config.train.log_every = 1
        config.train.save_every = 2
        config.eval.windows = 8
        config.eval.batch_size = 8
        config.eval.episodes = 4
    elif variant:
        known = ", ".join(VARIANTS)
        raise ValueError(f"configs/mujoco_bc.py has no variant {variant!r} ({known}, or none)")
    return config
