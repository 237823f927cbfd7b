"""Encoding every window once: the values of encoding it each time, in one compiled size."""

import numpy as np
import pytest

from roam_jax.contracts import TimeSpec
from roam_jax.data.cached_statistics import compute_statistics
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.latents import encode_windows
from roam_jax.data.loader import make_loader
from roam_jax.data.options import WindowOptions
from roam_jax.data.windows import WindowSource
from tests.data import rlds

TIME = TimeSpec(frames=9, t_current=2)


NAMES = {"frames": "latents", "camera_frames": "camera_latents"}


def halve(frames):
    """Channels first, every fourth frame, half the size."""
    return np.moveaxis(frames[..., ::4, ::2, ::2, :].astype(np.float32), -1, -3) / 255


def encode(videos):
    """A stand-in with a VAE's shapes."""
    found = {"goal_latent": halve(videos["goal_frame"])} if "goal_frame" in videos else {}
    for name, latents in NAMES.items():
        if name in videos:
            whole = halve(videos[name])
            found[f"observed_{latents}"] = whole[..., : TIME.t_current, :, :, :]
            found[f"target_{latents}"] = whole
    return found


def open_windows(tmp_path, *, cameras=("image_0",), goal="none"):
    episodes = [rlds.StoredEpisode.random(i, 12) for i in range(2)]
    root = rlds.write_dataset(tmp_path / "toy", {"train": episodes})
    reader = EpisodeReader(root, "train", cameras=cameras)
    options = WindowOptions(time=TIME, image_size=(8, 8), goal=goal)
    return WindowSource(reader, options, statistics=compute_statistics(reader))


@pytest.fixture
def windows(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    return open_windows(tmp_path)


def test_items_hold_what_the_encoder_gives(windows):
    sizes = []

    def counted(videos):
        sizes.append(len(videos["frames"]))
        return encode(videos)

    encoded = encode_windows(windows, counted, batch_size=4)
    assert len(encoded) == len(windows) == 6
    assert sizes == [4, 4]
    for i in range(6):
        window, item = windows[i], encoded[i]
        latents = encode({"frames": window.pop("frames")[None]})
        for name, array in latents.items():
            np.testing.assert_array_equal(item[name], array[0])
        assert item.keys() == window.keys() | {"observed_latents", "target_latents"}
        for name, array in window.items():
            np.testing.assert_array_equal(item[name], array)


def test_batches_come_in_the_order_of_the_frames(windows):
    frames = make_loader(windows, batch_size=4, seed=0)
    latents = make_loader(encode_windows(windows, encode, batch_size=6), batch_size=4, seed=0)
    for _ in range(3):
        one, two = next(frames), next(latents)
        np.testing.assert_array_equal(one["start"], two["start"])
        np.testing.assert_array_equal(encode(one)["target_latents"], two["target_latents"])


def test_memory_is_said(windows):
    encoded = encode_windows(windows, encode, batch_size=3)
    # 5 latent frames of 3 x 4 x 4, text of 8, 8 actions of 7, 3 states of 7, 3 rewards: float32;
    # three int32.
    assert encoded.describe()["bytes_in_memory"] == 6 * 4 * (5 * 48 + 8 + 56 + 21 + 3 + 3)


def test_an_encoder_of_another_time_is_refused(windows):
    def everything_observed(videos):
        latents = encode(videos)
        return latents | {"observed_latents": latents["target_latents"]}

    with pytest.raises(ValueError, match="gave 3 observed and 3 latent frames, expected 2 and 3"):
        encode_windows(windows, everything_observed, batch_size=6)


def test_cameras_and_goals_are_encoded_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path / "cache"))
    windows = open_windows(tmp_path, cameras=("image_1", "image_0"), goal="last")
    encoded = encode_windows(windows, encode, batch_size=4)
    window, item = windows[4], encoded[4]
    assert not {"frames", "camera_frames", "goal_frame"} & item.keys()
    np.testing.assert_array_equal(
        item["observed_camera_latents"], halve(window["camera_frames"])[:, :2]
    )
    np.testing.assert_array_equal(item["target_camera_latents"], halve(window["camera_frames"]))
    np.testing.assert_array_equal(item["goal_latent"], halve(window["goal_frame"]))
