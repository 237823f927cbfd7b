"""Which frames, heights and widths a CogVideoX model can make.

The VAE makes 4n + 1 frames of n + 1 latent frames, and 8x8 pixels of a latent pixel; the
transformer reads patches of 2x2 latent pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.vae_config import VAEConfig


@dataclasses.dataclass(frozen=True)
class VideoSize:
    """Of one video.

    Args:
        frames: environment frames.
        height, width: in pixels.
    """

    frames: int
    height: int
    width: int

    @classmethod
    def of_model(cls, transformer: TransformerConfig, vae: VAEConfig) -> VideoSize:
        """What the transformer was trained at."""
        ratio = vae.spatial_compression_ratio
        height, width = transformer.sample_height * ratio, transformer.sample_width * ratio
        return cls(transformer.sample_frames, height, width)

    def latent_shape(
        self, transformer: TransformerConfig, vae: VAEConfig
    ) -> tuple[int, int, int, int]:
        """(F, C, h, w) of the latents.

        Raises:
            ValueError: no latents give such a video; names the nearest that some do.
        """
        _check_frames("frames", self.frames, vae)
        ratio = vae.spatial_compression_ratio
        unit = ratio * transformer.patch_size
        for name in ("height", "width"):
            pixels = getattr(self, name)
            if pixels < unit or pixels % unit:
                raise ValueError(
                    f"{name} = {pixels}: expected a multiple of {unit} pixels, the nearest is "
                    f"{_or(_around(pixels, unit, least=unit))}"
                )
        count = (self.frames - 1) // vae.temporal_compression_ratio + 1
        return count, vae.latent_channels, self.height // ratio, self.width // ratio

    def check_first_frames(self, given: Sequence[int], vae: VAEConfig) -> None:
        """Refuses frames that such a video cannot begin with.

        Args:
            given: their (count, height, width).
            vae: the VAE.

        Raises:
            ValueError: no whole number of latent frames, nothing left to predict, or another size.
        """
        count, *pixels = given
        _check_frames("first frames", count, vae)
        last = self.frames - vae.temporal_compression_ratio
        if count > last:
            raise ValueError(
                f"first frames = {count} of a video of {self.frames}: expected at most {last}, so "
                "that something is left to predict"
            )
        if tuple(pixels) != (self.height, self.width):
            raise ValueError(
                f"first frames of {pixels[0]}x{pixels[1]} pixels: expected {self.height}x"
                f"{self.width}, as the video"
            )


def _check_frames(name: str, count: int, vae: VAEConfig) -> None:
    step = vae.temporal_compression_ratio
    if count < 1 or (count - 1) % step:
        near = [number + 1 for number in _around(count - 1, step, least=0)]
        raise ValueError(
            f"{name} = {count}: the VAE has {step}n + 1 frames, the nearest is {_or(near)}"
        )


def _around(value: int, unit: int, *, least: int) -> list[int]:
    """The multiples of `unit` on both sides of a value that is none, from `least` on."""
    below = value // unit * unit
    return sorted({max(below, least), max(below + unit, least)})


def _or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
