"""A thalamic relay: streams meet in cells that each stream reads through a learned gate.

    python train.py --config configs/topology/thalamic_relay.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/thalamic_relay.py:tiny --workdir runs/topology

The relay's cells are the thought cells; the gates add one parameter a relay edge and block.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.canvas.proprio = True
    config.canvas.thought_cells = 16
    config.topology.kind = "thalamic_relay"
    return config
