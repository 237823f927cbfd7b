"""A cortical hierarchy: pictures and text below, vectors above them, slow thought on top.

    python train.py --config configs/topology/cortical_hierarchy.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/cortical_hierarchy.py:tiny --workdir runs/topology

A level reads itself and its neighbours; thought ticks every second latent frame.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.canvas.proprio = True
    config.canvas.thought_cells = 16
    config.canvas.thought_period = 2
    config.topology.kind = "cortical_hierarchy"
    return config
