"""A local window: cells read at most one latent frame away, the backbone's own included.

    python train.py --config configs/topology/local_window.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/local_window.py:tiny --workdir runs/topology

Text and video are governed as well (`topology.backbone = declared`), so the grafted model does not
start as its backbone: `describe` says so.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.topology.kind = "local_window"
    config.topology.backbone = "declared"
    config.topology.window = 1
    return config
