"""Agents with canvases of their own: each camera one, the robot's body another.

    python train.py --config configs/topology/multi_agent.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/multi_agent.py:tiny --workdir runs/topology

The body's cells read every camera; cameras do not read each other.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.data.cameras = ("image_0", "image_1")
    config.canvas.proprio = True
    config.topology.kind = "multi_agent"
    return config
