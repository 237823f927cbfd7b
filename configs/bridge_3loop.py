"""Three-round loops and an action decoder on a frozen CogVideoX, trained on BridgeData V2.

    python train.py --config configs/bridge_3loop.py --workdir runs/bridge_3loop \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/bridge_3loop.py:tiny --workdir runs/tiny

Without a variant this is the 2B model on image_0: 17 frames of 256x256 (5 latents, 16 actions), for
A100s with 40 GB or more (`--config.mesh.fsdp=8` on a node of eight). `tiny` makes the same choices
at a size that trains in two minutes on two CPU cores, on embedded data and with the small
pretrained weights of the package: 9 frames of 64x64, 4 past actions, a chunk of 4.
"""

import ml_collections

from configs import defaults


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = defaults.get_config()
    config.loop.rounds = 3
    config.loop.gate = "identity"
    config.decoder.kind = "tokens"
    config.freeze = "full"
    config.canvas.t_current = 2
    if variant == "tiny":
        config.data.encode_once = 256
        config.backbone.path = "tiny"
        config.optim.lr = 3e-3
        config.optim.warmup_steps = 20
        config.train.steps = 280
        config.train.save_every = 70
    elif variant == "":
        config.data.root = ""
        config.data.text = ""
        config.data.image_size = (256, 256)
        config.data.frames = 17
        config.train.steps = 20_000
        config.train.eval_every = 1000
        config.eval.windows = 512
    else:
        raise ValueError(f"configs/bridge_3loop.py has no variant {variant!r} (tiny, or none)")
    return config
