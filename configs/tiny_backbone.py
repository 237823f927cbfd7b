"""The small CogVideoX transformer that comes with the package, pretrained on embedded video.

    python train.py --config configs/tiny_backbone.py --workdir runs/tiny_backbone
    python -m convert export --workdir runs/tiny_backbone --dst exported

1.9M parameters, 9 frames of 64x64 with varied colours, shapes, tables and cameras. The VAE comes
from the package's tiny weights (`configs/tiny_vae.py`).
"""

import ml_collections

from configs import defaults


def get_config() -> ml_collections.ConfigDict:
    """Text-to-video, half of the rows with clean first frames."""
    config = defaults.get_config()
    config.data.root = "embedded:pretrain"
    config.data.encode_once = 20_000
    config.backbone.path = "tiny"
    config.loss.observed_fraction = 0.5
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 100
    config.optim.final_lr_fraction = 0.02
    config.train.task = "video"
    config.train.steps = 3000
    config.train.batch_size = 16
    config.train.log_every = 50
    config.train.save_every = 500
    config.eval.windows = 256
    config.eval.batch_size = 32
    return config
