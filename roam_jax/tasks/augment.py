"""Random crops and colours of the frames, drawn anew for every window and camera at every step.

They run on the accelerator, within the loss: the CPU cores of a training machine are busy decoding
JPEGs, and loaders that also resize and recolour on them leave accelerators waiting, while there all
of this is little beside the VAE that follows (4 % of even the tiny one, on a CPU). Host memory and
transfers stay at the size of the uint8 frames. The draws derive from the step's key, so that a
resumed run repeats them; all frames of a window share them, or motion would be noise. Evaluation
never augments.

The steps are those of peers' policies: random resized crop, brightness, contrast, saturation, hue,
in this order (`dm_pix`, whose functions are those of TensorFlow's image operations).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, UInt8

from roam_jax.contracts import Batch
from roam_jax.microbatch import Part, draw_rows, part_of

# Setting -> whether a value is in range, and what is expected.
_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "crop_area": (lambda x: 0 < x <= 1, "a share above 0, at most 1"),
    "crop_aspect": (lambda x: 1 <= x < math.inf, "a finite ratio of at least 1"),
    "brightness": (lambda x: 0 <= x <= 1, "0 to 1"),
    "contrast": (lambda x: 0 <= x <= 1, "0 to 1"),
    "saturation": (lambda x: 0 <= x <= 1, "0 to 1"),
    "hue": (lambda x: 0 <= x <= 0.5, "0 to 0.5"),
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What `data.augment` says; the defaults change nothing.

    Args:
        crop_area: smallest share of the frame's area that a crop keeps, above 0; 1 = no crop.
        crop_aspect: a crop's aspect, relative to the frame's, lies between 1 / this and this.
        brightness: largest shift, in shares of the range of a channel.
        contrast, saturation: factors lie between 1 - this and 1 + this.
        hue: largest turn, in shares of the colour circle.

    Raises:
        ValueError: a value is out of range.
    """

    crop_area: float = 1.0
    crop_aspect: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        for name, (allowed, expected) in _RULES.items():
            value = getattr(self, name)
            if not allowed(value):
                raise ValueError(f"data.augment.{name} = {value}: expected {expected}")

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Augmentation:
        """The section `data.augment` of a whole config."""
        augment = config.data.augment
        return cls(
            crop_area=augment.crop_area,
            crop_aspect=augment.crop_aspect,
            brightness=augment.brightness,
            contrast=augment.contrast,
            saturation=augment.saturation,
            hue=augment.hue,
        )

    @property
    def changed(self) -> dict[str, float]:
        """Settings that change frames; empty where nothing is augmented."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch with its videos augmented, uint8 as before; the batch itself where none is.

        Args:
            batch: windows with frames.
            rng: key of the step. Each camera has its own draws for each window; the goal frame gets
                those of the first camera, which it must be compared with.

        Raises:
            ValueError: the batch brings latents, which cannot be augmented.
        """
        if not self.changed:
            return batch
        if "frames" not in batch:
            raise ValueError(
                f"{_settings(self.changed)}: the batch brings latents, which cannot be augmented; "
                "expected frames (data.encode_once = 0), or no data.augment"
            )
        first, part = jax.random.fold_in(rng, 0), part_of(batch)
        changed = {"frames": self.window(batch["frames"], first, part=part)}
        if "camera_frames" in batch:
            views = jnp.moveaxis(jnp.asarray(batch["camera_frames"]), 1, 0)
            keys = [jax.random.fold_in(rng, 1 + number) for number in range(len(views))]
            views = [
                self.window(view, key, part=part) for view, key in zip(views, keys, strict=True)
            ]
            changed["camera_frames"] = jnp.stack(views, axis=1)
        if "goal_frame" in batch:
            changed["goal_frame"] = self.window(batch["goal_frame"], first, part=part)
        return {**batch, **changed}

    def window(
        self, frames: UInt8[Array, "B T H W 3"], rng: jax.Array, *, part: Part | None = None
    ) -> UInt8[Array, "B T H W 3"]:
        """Frames of one camera, each window by its own draws; of a larger batch where a part."""
        count, _, height, width, _ = frames.shape
        crop_rng, *rngs = jax.random.split(rng, 5)
        images = jnp.asarray(frames, jnp.float32) / 255
        if self.crop_area < 1 or self.crop_aspect > 1:
            size = (height, width)
            boxes = draw_rows(part, count, lambda n: self.crop_boxes(crop_rng, n, size=size))
            images = jnp.clip(jax.vmap(resized_crop)(images, boxes), 0, 1)
        for (name, adjust, centre), colour_rng in zip(_COLOURS, rngs, strict=True):
            if amount := getattr(self, name):
                low, high = centre - amount, centre + amount
                draw = functools.partial(jax.random.uniform, colour_rng, minval=low, maxval=high)
                drawn = draw_rows(part, count, lambda n, draw=draw: draw((n,)))
                images = jnp.clip(jax.vmap(adjust)(images, drawn), 0, 1)
        return jnp.round(images * 255).astype(jnp.uint8)

    def crop_boxes(
        self, rng: jax.Array, count: int, *, size: tuple[int, int]
    ) -> Float[Array, "N 4"]:
        """Top, left, height and width of `count` crops of frames of `size`, in pixels.

        The share of the area is uniform, the aspect log-uniform; a side that would be longer than
        the frame's is cut to it. The place is uniform over those within the frame.
        """
        area_rng, aspect_rng, place_rng = jax.random.split(rng, 3)
        area = jax.random.uniform(area_rng, (count,), minval=self.crop_area, maxval=1.0)
        spread = math.log(self.crop_aspect)
        aspect = jnp.exp(jax.random.uniform(aspect_rng, (count,), minval=-spread, maxval=spread))
        shares = jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)], axis=1)
        sides = jnp.minimum(shares, 1) * jnp.array(size, jnp.float32)
        corners = jax.random.uniform(place_rng, (count, 2)) * (jnp.array(size) - sides)
        return jnp.concatenate([corners, sides], axis=1)


# In the order in which they run: setting, function of image and number, and its neutral number.
_COLOURS: tuple[tuple[str, Callable[[Array, Array], Array], float], ...] = (
    ("brightness", dm_pix.adjust_brightness, 0.0),
    ("contrast", dm_pix.adjust_contrast, 1.0),
    ("saturation", dm_pix.adjust_saturation, 1.0),
    ("hue", dm_pix.adjust_hue, 0.0),
)


def resized_crop(
    images: Float[Array, "T H W 3"], box: Float[Array, " 4"]
) -> Float[Array, "T H W 3"]:
    """The box (top, left, height, width), in pixels, at the size of the frames; bilinear.

    A box is never larger than the frame, so there is nothing to smooth beforehand.
    """
    corner, sides = box[:2], box[2:]
    scale = jnp.array(images.shape[1:3]) / sides
    return jax.image.scale_and_translate(
        images,
        images.shape,
        spatial_dims=(1, 2),
        scale=scale,
        translation=-corner * scale,
        method="linear",
        antialias=False,
    )


def refuse(config: ml_collections.ConfigDict) -> None:
    """Called by a task that has an augmentation of its own.

    Raises:
        ValueError: the config asks for this one.
    """
    if changed := Augmentation.from_config(config).changed:
        raise ValueError(
            f"{_settings(changed)}: train.task = {config.train.task} crops and recolours its clips "
            "in its own way; expected data.augment as it is by default"
        )


def _settings(changed: dict[str, float]) -> str:
    return ", ".join(f"data.augment.{name} = {value}" for name, value in changed.items())
