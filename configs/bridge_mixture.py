"""BridgeData V2 in both of its copies: a mixture with a goal, augmentation and workers.

    python train.py --config configs/bridge_mixture.py --workdir runs/mixture \\
        --config.backbone.path=CONVERTED_2B --config.data.text=EMBEDDINGS \\
        --config.data.mixture="(('bridge',0.75,'BRIDGE'),('oxe',0.25,'OXE_BRIDGE'))"
    python train.py --config configs/bridge_mixture.py:tiny --workdir runs/mixture_tiny

What `bridge_3loop.py` leaves out of the data: a mixture, the end of the episode as a goal, random
crops and colours with the ranges that Octo trains with, workers. OXE's copy has one camera, so one
is used; with BridgeData V2 alone add others by `--config.data.cameras`. `tiny` mixes the two
embedded datasets at 9 frames of 64x64 on the package's small weights: 200 steps, about three
minutes on two CPU cores.
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
