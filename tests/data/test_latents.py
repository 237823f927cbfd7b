"""Encoding every window once: the values of encoding it each time, in one compiled size."""

import numpy as np
import pytest

from roam_jax.contracts import TimeSpec
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.latents import encode_windows
from roam_jax.data.loader import make_loader
from roam_jax.data.statistics import compute_statistics
from roam_jax.data.windows import WindowSource
from tests.data import rlds

TIME = TimeSpec(frames=9, t_current=2)


def encode(frames):
    """A stand-in with a VAE's shapes: channels first, every fourth frame, half the size."""
    half = frames[:, ::4, ::2, ::2].astype(np.float32).transpose(0, 1, 4, 2, 3) / 255
    return half[:, : TIME.t_current], half


@pytest.fixture
def windows(tmp_path):
    episodes = [rlds.StoredEpisode.random(i, 12) for i in range(2)]
    root = rlds.write_dataset(tmp_path / "toy", {"train": episodes})
    reader = EpisodeReader(root, "train")
    return WindowSource(reader, TIME, image_size=8, statistics=compute_statistics(reader))


def test_items_hold_what_the_encoder_gives(windows):
    sizes = []

    def counted(frames):
        sizes.append(len(frames))
        return encode(frames)

    encoded = encode_windows(windows, counted, batch_size=4)
    assert len(encoded) == len(windows) == 6
    assert sizes == [4, 4]
    for i in range(6):
        window, item = windows[i], encoded[i]
        observed, target = encode(window.pop("frames")[None])
        np.testing.assert_array_equal(item["observed_latents"], observed[0])
        np.testing.assert_array_equal(item["target_latents"], target[0])
        assert item.keys() == window.keys() | {"observed_latents", "target_latents"}
        for name, array in window.items():
            np.testing.assert_array_equal(item[name], array)


def test_batches_come_in_the_order_of_the_frames(windows):
    frames = make_loader(windows, batch_size=4, seed=0)
    latents = make_loader(encode_windows(windows, encode, batch_size=6), batch_size=4, seed=0)
    for _ in range(3):
        one, two = next(frames), next(latents)
        np.testing.assert_array_equal(one["start"], two["start"])
        np.testing.assert_array_equal(encode(one["frames"])[1], two["target_latents"])


def test_memory_is_said(windows):
    encoded = encode_windows(windows, encode, batch_size=3)
    # 5 latent frames of 3 x 4 x 4, text of 8, 8 actions of 7, 3 states of 7, 3 rewards: float32;
    # two int32.
    assert encoded.describe()["bytes_in_memory"] == 6 * 4 * (5 * 48 + 8 + 56 + 21 + 3 + 2)


def test_an_encoder_of_another_time_is_refused(windows):
    with pytest.raises(ValueError, match="gave 3 observed and 3 latent frames, expected 2 and 3"):
        encode_windows(windows, lambda frames: (encode(frames)[1],) * 2, batch_size=6)
