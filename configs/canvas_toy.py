"""The looped canvas model on a scene of moving shapes, a hand, rewards, questions and answers.

    python train.py --config configs/canvas_toy.py --workdir runs/canvas_toy
    python train.py --config configs/canvas_toy.py:distinct --workdir runs/canvas_distinct

Without a variant this is 3 blocks x 4 rounds with sigmoid gates on 120 cells of width 64: 2,000
steps of batch 8 in some minutes on two CPU cores (docs/canvas_model.md has figures). Of depth
against recurrence, `distinct` is 12 blocks x 1 round, of the same FLOPs, and `narrow` the same 12
blocks narrowed to as many block parameters as the 3 have. `stack` loops all blocks together,
`distilled` teaches its earlier rounds as well, `halting` lets cells stop by themselves, and `tiny`
is a few steps of a small model, for tests.
"""

import ml_collections

from configs import defaults
from roam_jax.model.sizes import narrowed_width

VARIANTS = ("distinct", "narrow", "stack", "distilled", "halting", "tiny")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """3 blocks x 4 rounds, or a variant of it."""
    config = defaults.get_config()
    config.data.scene = "multimodal"
    config.model.width = 64
    config.model.depth = 3
    config.model.heads = 4
    config.loop.rounds = 4
    config.loop.gate = "sigmoid"
    config.train.task = "canvas"
    config.train.steps = 2000
    config.train.batch_size = 8
    if variant in ("distinct", "narrow"):
        blocks = config.model.depth * config.loop.rounds
        if variant == "narrow":
            config.model.width = narrowed_width(
                width=config.model.width,
                depth=config.model.depth,
                heads=config.model.heads,
                to_depth=blocks,
            )
        config.model.depth = blocks
        config.loop.rounds = 1
        # One round of a sigmoid gate would open it half.
        config.loop.gate = "off"
    elif variant in ("stack", "distilled"):
        config.loop.over = "stack"
        config.loop.self_distillation = variant == "distilled"
    elif variant == "halting":
        config.loop.halting = "learned"
    elif variant == "tiny":
        config.model.width = 16
        config.model.depth = 2
        config.model.heads = 2
        config.loop.rounds = 2
        config.optim.warmup_steps = 1
        config.train.steps = 4
        config.train.batch_size = 2
        config.train.log_every = 1
        config.train.save_every = 2
        config.eval.windows = 4
        config.eval.batch_size = 4
    elif variant:
        known = ", ".join(VARIANTS)
        raise ValueError(f"configs/canvas_toy.py has no variant {variant!r} ({known}, or none)")
    return config
