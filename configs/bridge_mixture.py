"""BridgeData V2 beside another dataset: a mixture with a goal, augmentation and workers.

    python train.py --config configs/bridge_mixture.py --workdir runs/mixture \\
        --config.backbone.path=CONVERTED_2B --config.data.text=EMBEDDINGS \\
        --config.data.mixture_actions=pad \\
        --config.data.mixture="(('bridge',0.75,'BRIDGE'),('arm',0.25,'MY_ARM','my_arm.py'))"
    python train.py --config configs/bridge_mixture.py:tiny --workdir runs/mixture_tiny

What `bridge_3loop.py` leaves out of the data: a mixture, the end of the episode as a goal, random
crops and colours with the ranges that Octo trains with, workers. `my_arm.py` is the declaration of
docs/data.md, which also tells when `mixture_actions` is needed. Do not mix BridgeData V2 with OXE's
copy of it: one's validation split is in the other's training split. `tiny` mixes the two embedded
datasets at 9 frames of 64x64 on the package's small weights: 200 steps, a few minutes on two CPU
cores.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/bridge_mixture.py has no variant {variant!r} (tiny, or none)")
    config = bridge_3loop.get_config(variant)
    config.data.goal = "last"
    config.data.encode_once = 0
    config.data.augment.crop_area = 0.8
    config.data.augment.crop_aspect = 1.1
    config.data.augment.brightness = 0.1
    config.data.augment.contrast = 0.1
    config.data.augment.saturation = 0.1
    config.data.augment.hue = 0.05
    config.data.workers = 8
    if variant == "tiny":
        config.data.mixture = (("plain", 0.5, "embedded"), ("varied", 0.5, "embedded:pretrain"))
        config.data.workers = 1
        config.train.steps = 200
        config.train.save_every = 50
    return config
