"""The small VAE that the package ships, trained on simulated video on two CPU cores.

    python train.py --config configs/tiny_vae.py:frames --workdir runs/vae_frames
    python -m convert export --workdir runs/vae_frames --dst runs/vae_frames/export
    python -m convert import --src runs/vae_frames/export --dst runs/vae_frames/import
    python train.py --config configs/tiny_vae.py --workdir runs/tiny_vae \\
        --config.backbone.path=runs/vae_frames/import

0.69 M parameters: 9 frames of 64x64 become 3 latents of 16 x 8 x 8. Data is the embedded set with
varied looks, seen in random colours and under random textures. Single frames come first, because
they cost a ninth of a clip.
"""

import ml_collections

from configs import defaults


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Whole clips, or single frames (`frames`)."""
    config = defaults.get_config()
    config.train.task = "vae"
    config.data.root = "embedded:pretrain"
    config.data.frames = 9
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 50
    config.optim.final_lr_fraction = 0.02
    config.optim.weight_decay = 0.0
    config.train.steps = 500
    config.train.batch_size = 8
    config.train.log_every = 20
    config.train.save_every = 100
    if variant == "frames":
        config.data.clip_frames = 1
        config.optim.lr = 4e-3
        config.train.steps = 2500
        config.train.batch_size = 12
        config.train.save_every = 250
    elif variant:
        raise ValueError(f"configs/tiny_vae.py has no variant {variant!r} (frames, or none)")
    return config
