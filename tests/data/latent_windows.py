"""Small windows and a stand-in for a VAE, for tests of encoded windows on disk."""

import numpy as np

from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.latent_cache import CachedLatents
from roam_jax.data.latent_layout import LatentLayout
from roam_jax.data.latent_shards import Encoding, own_text, record_fields, window_indices
from roam_jax.data.options import WindowOptions
from roam_jax.data.windows import WindowSource
from tests.data import rlds
from tests.data.test_latents import TIME, halve

MADE_WITH = {"weights of the VAE": "abc", "data.image_size": [8, 8]}
SHAPES = {"observed_latents": (2, 3, 4, 4), "target_latents": (3, 3, 4, 4)}
FIELDS = tuple(name for base in SHAPES for name in (base, f"{base}_logvar"))


def open_windows(root, *, episodes=None, **options):
    """Windows of three episodes: 4, 1 and 6 of them."""
    statistics = options.pop("statistics", None)
    spaces = options.pop("spaces", None)
    if not root.exists():
        stored = episodes or [rlds.StoredEpisode.random(i, n) for i, n in enumerate((13, 10, 15))]
        rlds.write_dataset(root, {"train": stored})
    reader = EpisodeReader(root, "train")
    return WindowSource(
        reader,
        WindowOptions(time=TIME, image_size=(8, 8), **options),
        statistics=statistics or compute_statistics(reader),
        spaces=spaces,
    )


def encode(videos):
    """Latents in the shapes of a VAE, and a log-variance that is none of their mean."""
    whole = halve(videos["frames"])
    if "copy" in videos:  # a copy is as bright as its number is high
        whole = whole + videos["copy"][:, 2].astype(np.float32).reshape(-1, 1, 1, 1, 1)
    found = {"observed_latents": whole[:, : TIME.t_current], "target_latents": whole}
    return found | {f"{name}_logvar": -1 - array / 3 for name, array in found.items()}


def make_layout(windows, **changes):
    """What is written of them: shards of three windows."""
    dtype, stride = changes.pop("dtype", "float32"), changes.get("stride", 1)
    shapes = {name: SHAPES[name.removesuffix("_logvar")] for name in FIELDS}
    values = {
        "made_with": MADE_WITH,
        "arithmetic": "float32 on cpu",
        "windows": len(window_indices(windows.counts, stride)),
        "stride": stride,
        "copies": 1,
        "drawn": False,
        "seed": 0,
        "shard_windows": 3,
        "fields": record_fields(windows, shapes, dtype=dtype),
        "own_text": own_text(windows),
        "arguments": ("--config", "my config.py"),
    }
    return LatentLayout(**values | changes)


def fill(windows, out, *, encoder=encode, part=None, **changes):
    """Encodes windows into a folder; whether it is complete."""
    options = {} if part is None else {"part": part}
    encoding = Encoding(windows, out, make_layout(windows, **changes), **options)
    return encoding.run(encoder, batch_size=2)


def open_cache(folder, windows, **changes):
    """Opens a folder as a run would that reads means alone."""
    options = {
        "made_with": MADE_WITH,
        "fields": ("observed_latents", "target_latents"),
        "arithmetic": "float32 on cpu",
    }
    return CachedLatents(folder, windows, **options | changes)
