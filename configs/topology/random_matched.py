"""The control: random (region, frame) edges, as many pairs as central thought allows.

    python train.py --config configs/topology/random_matched.py --workdir runs/topology \\
        --config.backbone.path=CONVERTED_2B --config.data.root=BRIDGE \\
        --config.data.text=EMBEDDINGS
    python train.py --config configs/topology/random_matched.py:tiny --workdir runs/topology

Run it with several `--config.topology.seed` beside configs/topology/central_thought.py.
All else is configs/bridge_3loop.py, sizes and `tiny` included; docs/topology.md has the picture.
"""

import ml_collections

from configs import bridge_3loop


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The 2B run, or its `tiny` copy."""
    config = bridge_3loop.get_config(variant)
    config.canvas.proprio = True
    config.canvas.thought_cells = 16
    config.topology.kind = "random_matched"
    config.topology.matches = "central_thought"
    return config
