"""The looped canvas model on contact detection: when does a driven disc touch others?

    python train.py --config configs/canvas_contact.py --workdir runs/canvas_contact
    python train.py --config configs/canvas_contact.py:tiny --workdir runs/contact_tiny

A disc is driven by commands among free discs in a box. The model sees the first frames, the
commands and the disc's own state, and says for every frame whether there was a contact (F1 in
eval.py's report). 3 blocks x 4 rounds of width 64; `tiny` is a few steps of a small model.
"""

import ml_collections

from configs import canvas_toy


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """3 blocks x 4 rounds, or its `tiny` copy."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/canvas_contact.py has no variant {variant!r} (tiny, or none)")
    config = canvas_toy.get_config(variant)
    config.data.scene = "contact"
    config.data.objects = 3
    config.data.observed_frames = 3
    return config
