"""The small VAE that the package ships, trained on simulated video on two CPU cores.

    python train.py --config configs/tiny_vae.py --workdir runs/tiny_vae

0.69 M parameters: 9 frames of 64x64 become 3 latents of 16 x 8 x 8. Data is the embedded set with
varied looks, seen in random colours and under random textures.
"""

import ml_collections

from configs import defaults


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The run behind roam_jax/assets/tiny_cogvideox/vae; it has no variants."""
    if variant:
        raise ValueError(f"configs/tiny_vae.py has no variant {variant!r}")
    config = defaults.get_config()
    config.train.task = "vae"
    config.data.root = "embedded:pretrain"
    config.data.frames = 9
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 50
    config.optim.final_lr_fraction = 0.02
    config.optim.weight_decay = 0.0
    config.train.steps = 1500
    config.train.batch_size = 8
    config.train.log_every = 20
    config.train.save_every = 300
    return config
