"""Central thought: streams meet in a few learned cells and nowhere else.

    python train.py --config configs/topology/central_thought.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/central_thought.py:tiny --workdir runs/topology

Actions and robot state read their own stream and the thought cells, which read everything.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.canvas.proprio = True
    config.canvas.thought_cells = 16
    config.topology.kind = "central_thought"
    return config
