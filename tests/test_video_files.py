"""Video files as other programs read them: counts, rates, colours; bad names and sizes."""

import fractions

import av
import numpy as np
import pytest
from PIL import Image

from roam_jax.video_files import read_frames, write_video


def clip(frames=5, height=34, width=50):
    """Smooth colours with a square that moves, as H.264 meets in practice."""
    t, y, x = np.mgrid[:frames, :height, :width]
    video = np.stack([100 + 2 * x, 60 + 3 * y, 40 + 20 * t], axis=-1).astype(np.uint8)
    for i in range(frames):
        video[i, 8:18, 4 * i : 4 * i + 10] = (200, 30, 90)
    return video


def psnr(found, expected):
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2))


@pytest.mark.parametrize("rate", [8, 29.97, 2.5])
def test_mp4_keeps_count_rate_and_colours(tmp_path, rate):
    path = tmp_path / "clip.mp4"
    write_video(path, clip(), rate=rate)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width, stream.frames) == (34, 50, 5)
        assert stream.average_rate == fractions.Fraction(rate).limit_denominator(1001)
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / rate, rel=1e-3)
    found = read_frames(path)
    assert found.shape == clip().shape and psnr(found, clip()) > 30
    np.testing.assert_array_equal(read_frames(path, count=2), found[:2])
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_gif_keeps_count_rate_and_colours_at_odd_sizes(tmp_path):
    path, video = tmp_path / "clip.GIF", clip(height=33, width=49)
    write_video(path, video, rate=8)
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (5, (49, 33))
        assert image.info["duration"] == 120 and image.info["loop"] == 0
    assert psnr(read_frames(path), video) > 30


def test_pictures_are_read_bit_for_bit(tmp_path):
    video = clip(3)
    for i, name in enumerate(["a.png", "b.PNG", "c.png"]):
        Image.fromarray(video[i]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    np.testing.assert_array_equal(read_frames(tmp_path), video)
    np.testing.assert_array_equal(read_frames(tmp_path, count=1), video[:1])
    np.testing.assert_array_equal(read_frames(tmp_path / "c.png"), video[2:])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(av.VideoFrame, "from_ndarray", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_video(path, clip(), rate=8)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "name, frames, rate, message",
    [
        ("clip.avi", clip(), 8, r"clip.avi: expected a name that ends with .mp4 or .gif"),
        ("a.mp4", clip(height=33), 8, "frames of 33x50 pixels, expected an even height and width"),
        ("a.mp4", clip()[:0], 8, "no frames"),
        ("a.mp4", clip(), 0, "rate = 0 frames a second, expected a positive number"),
        ("a.gif", clip(), 1e-4, "a.gif: rate = 0.0001 frames a second is too slow: a picture"),
        ("a.gif", clip()[[0, 0, 0]], 1 / 300, "is too slow: .* 655 s at most, and frames that"),
        ("a.gif", clip(), 1e-310, "a.gif: rate = 1e-310 frames a second is too slow"),
        ("a.gif", clip(), 60, "rate = 60 frames a second, expected at most 50 in a .gif"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, frames, rate, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, rate=rate)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.mp4: no folder .*/gone"):
        write_video(tmp_path / "gone" / "a.mp4", clip(), rate=8)


def test_what_cannot_be_read_is_refused(tmp_path):
    for name in ("text.mp4", "text.png"):
        (tmp_path / name).write_text("no pixels")
        with pytest.raises(ValueError, match=rf"{name}: not a (video|picture) that can be read"):
            read_frames(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        read_frames(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no pictures \(.png, .jpg, .jpeg\) in it"):
        read_frames(tmp_path / "empty")
    Image.fromarray(clip()[0]).save(tmp_path / "empty" / "a.png")
    with pytest.raises(ValueError, match="has 1 frames, expected 5"):
        read_frames(tmp_path / "empty", count=5)
    Image.fromarray(clip(height=40)[0]).save(tmp_path / "empty" / "b.png")
    with pytest.raises(ValueError, match="pictures of 34x50, 40x50 pixels, expected one size"):
        read_frames(tmp_path / "empty")
