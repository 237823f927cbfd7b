"""Videos as files: H.264 in .mp4, which every browser plays, and .gif.

A file appears whole or not at all. Frames are (T, H, W, 3), 8-bit RGB.
"""

from __future__ import annotations

import fractions
import itertools
import os
import pathlib
import uuid
from collections.abc import Iterator

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

ENDINGS = (".mp4", ".gif")
IMAGES = (".png", ".jpg", ".jpeg")
# Constant rate factor of H.264: 18 is close to what the eye cannot tell from the original.
_QUALITY = "18"
# Colours with half their rows and columns: what players expect, and why sizes are even.
_PIXELS = "yuv420p"
# A GIF counts time in hundredths of a second, and players slow down what is shorter than two.
_GIF_UNIT_MS, _GIF_SHORTEST_MS = 10, 20


def write_video(
    path: str | os.PathLike[str], frames: UInt8[np.ndarray, "T H W 3"], *, rate: float
) -> None:
    """Writes .mp4 (H.264) or .gif (256 colours a frame), as the ending says.

    Args:
        path: the new file, replaced where it exists.
        frames: RGB.
        rate: frames a second, above 0; a GIF rounds to hundredths of a second a frame, and draws
            frames that are alike as one that stays longer.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: another ending, no frames, an odd height or width in .mp4, or a rate that is not
            positive, too slow for the format or, in .gif, above 50.
    """
    path = pathlib.Path(path)
    check_video_file(path, rate=rate)
    count, height, width, _ = frames.shape
    if not count:
        raise ValueError(f"{path}: no frames, expected at least one")
    write = _write_gif
    if path.suffix.lower() == ".mp4":
        write = _write_mp4
        if height % 2 or width % 2:
            raise ValueError(
                f"{path}: frames of {height}x{width} pixels, expected an even height and width in "
                ".mp4 (a .gif takes any)"
            )
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        write(partial, frames, rate)
        os.replace(partial, path)
    except OverflowError as error:
        raise ValueError(
            f"{path}: rate = {rate} frames a second is too slow: a picture in a .gif "
            "stays 655 s at most, and frames that are alike are one picture"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def check_video_file(path: str | os.PathLike[str], *, rate: float) -> None:
    """Refuses what `write_video` could not write, before hours are spent on the frames.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: another ending than .mp4 and .gif, or a rate that is not positive or, in .gif,
            above 50.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: expected a name that ends with {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no folder {path.parent}")
    if not 0 < rate < float("inf"):
        raise ValueError(f"{path}: rate = {rate} frames a second, expected a positive number")
    highest = 1000 / _GIF_SHORTEST_MS
    if path.suffix.lower() == ".gif" and rate > highest:
        raise ValueError(
            f"{path}: rate = {rate} frames a second, expected at most {highest:g} in a .gif"
        )


def _write_mp4(path: pathlib.Path, frames: np.ndarray, rate: float) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=fractions.Fraction(rate).limit_denominator(1001)
        )
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = _PIXELS
        stream.options = {"crf": _QUALITY}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _write_gif(path: pathlib.Path, frames: np.ndarray, rate: float) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    unit = round(1000 / rate / _GIF_UNIT_MS) * _GIF_UNIT_MS
    first.save(path, "GIF", save_all=True, append_images=others, duration=unit, loop=0)


def read_frames(
    path: str | os.PathLike[str], *, count: int | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames of a video, a GIF, a picture (one frame), or a folder of pictures in order of names.

    Args:
        path: file or folder.
        count: how many from the start; None = all.

    Raises:
        FileNotFoundError: nothing there, or a folder without pictures.
        ValueError: not a video or picture, fewer frames than `count`, or pictures of several sizes.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        source = _folder_frames(path)
    elif path.suffix.lower() in (*IMAGES, ".gif"):
        source = _image_frames(path)
    else:
        source = _video_frames(path)
    frames = list(itertools.islice(source, count))
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"{path}: has {len(frames)} frames, expected {count or 'at least 1'}")
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise ValueError(f"{path}: pictures of {shown} pixels, expected one size")
    return np.stack(frames)


def _folder_frames(folder: pathlib.Path) -> Iterator[np.ndarray]:
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    if not pictures:
        raise FileNotFoundError(f"{folder}: no pictures ({', '.join(IMAGES)}) in it")
    for picture in pictures:
        yield from _image_frames(picture)


def _image_frames(path: pathlib.Path) -> Iterator[np.ndarray]:
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield np.asarray(frame.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path}: not a picture that can be read: {error}") from error


def _video_frames(path: pathlib.Path) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video in it")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a video that can be read: {error}") from error
