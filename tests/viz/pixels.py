"""Colours of a written picture."""

import matplotlib.image
import numpy as np
from matplotlib.colors import to_rgb


def pixels(path):
    return matplotlib.image.imread(path)[..., :3]


def has_colour(image, colour) -> bool:
    return bool((np.abs(image - np.array(to_rgb(colour))).max(axis=-1) < 0.02).any())
