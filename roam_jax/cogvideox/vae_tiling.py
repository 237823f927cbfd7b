"""The VAE on frames too large for memory: overlapping tiles, blended where they overlap.

Equal to diffusers' `enable_tiling`: the same tiles, each through the VAE on its own with all of its
frames, and the same linear blend with the tile above and the one to the left. The result is not
that of the whole frame, since a tile's norms see the tile alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import Params

# Height and width, as a share of the tile.
OVERLAP = (1 / 6, 1 / 5)
_ROWS, _COLUMNS = -2, -1


def decode_tiled(
    vae: VAE,
    params: Params,
    latents: Float[Array | np.ndarray, "B C F h w"],
    *,
    tile: tuple[int, int] | None = None,
    overlap: tuple[float, float] | None = None,
) -> Float32[np.ndarray, "B c T H W"]:
    """`VAE.decode` in tiles, one clip at a time; compiles once for each shape of a tile.

    Args:
        vae: the module.
        params: its parameters.
        latents: unscaled, as for `VAE.decode`.
        tile: height and width in pixels; None = half the config's sample size each, as diffusers.
        overlap: of neighbours, in shares of the tile; None = 1/6 of the height, 1/5 of the width.

    Returns:
        RGB in about [-1, 1], on the host. Frames no larger than a tile are decoded whole.

    Raises:
        ValueError: tile and overlap are no whole latent pixels, or not the same for both sides.
    """
    decoding, _ = _tiling(vae.config, tile, overlap)
    run = functools.partial(decode_whole, vae, params)
    clips = [_run_tiled(run, clip, *decoding) for clip in _clips(latents)]
    return np.concatenate(clips)


def encode_tiled(
    vae: VAE,
    params: Params,
    video: Float[Array | np.ndarray, "B C T H W"],
    *,
    tile: tuple[int, int] | None = None,
    overlap: tuple[float, float] | None = None,
) -> tuple[Float32[np.ndarray, "B c F h w"], Float32[np.ndarray, "B c F h w"]]:
    """`VAE.encode` in tiles: mean and log-variance. Arguments as for `decode_tiled`.

    The log-variance is clipped in each tile, not after the blend as in diffusers; the two are the
    same wherever it is between -30 and 20.

    Raises:
        ValueError: as `decode_tiled`, or frames that are no whole number of latent pixels.
    """
    ratio = vae.config.spatial_compression_ratio
    height, width = video.shape[-2:]
    if height % ratio or width % ratio:
        raise ValueError(f"video of {height}x{width}: expected multiples of {ratio}")
    _, encoding = _tiling(vae.config, tile, overlap)
    run = functools.partial(encode_whole, vae, params)
    clips = [_run_tiled(run, clip, *encoding) for clip in _clips(video)]
    mean, logvar = np.split(np.concatenate(clips), 2, axis=1)
    return mean, logvar


@functools.partial(jax.jit, static_argnums=0)
def decode_whole(vae: VAE, params: Params, latents: Array) -> Float32[Array, "B c T H W"]:
    """`VAE.decode` compiled, in float32."""
    return vae.apply({"params": params}, latents, method="decode").astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def encode_whole(vae: VAE, params: Params, video: Array) -> Float32[Array, "B c2 F h w"]:
    """`VAE.encode` compiled, in float32; mean then log-variance in channels."""
    moments = vae.apply({"params": params}, video, method="encode")
    return jnp.concatenate(moments, axis=1).astype(jnp.float32)


def _clips(batch: Array | np.ndarray) -> list[Array | np.ndarray]:
    return [batch[row : row + 1] for row in range(batch.shape[0])]


@dataclasses.dataclass(frozen=True)
class _Steps:
    """How one side of the VAE is tiled along one axis.

    Args:
        tile, step: size and distance of the tiles, in pixels of the input.
        kept: what a tile contributes at most, in pixels of the output.
        blended: overlap in pixels of the output.
    """

    tile: int
    step: int
    kept: int
    blended: int

    @classmethod
    def of(cls, inputs: int, outputs: int, share: float) -> _Steps:
        """For tiles of so many pixels in and out; rounded in floating point, as diffusers does."""
        blended = int(outputs * share)
        return cls(inputs, int(inputs * (1 - share)), outputs - blended, blended)


def _tiling(
    config: VAEConfig, tile: tuple[int, int] | None, overlap: tuple[float, float] | None
) -> tuple[list[_Steps], list[_Steps]]:
    """Of rows and columns, for decoding and for encoding."""
    tile = tile or (config.sample_height // 2, config.sample_width // 2)
    overlap = overlap or OVERLAP
    ratio, decoding, encoding = config.spatial_compression_ratio, [], []
    for pixels, share in zip(tile, overlap, strict=True):
        latents = pixels // ratio
        down, up = _Steps.of(latents, pixels, share), _Steps.of(pixels, latents, share)
        # Where step and kept part disagree, diffusers returns a video of another size.
        agree = down.step * ratio == down.kept and up.step == up.kept * ratio
        if not (agree and up.step > 0 and 0 < share < 1):
            raise ValueError(
                f"tile = {tile} pixels with overlap = {overlap}: expected shares of the tile that "
                f"are whole numbers of latent pixels, {ratio} pixels each"
            )
        decoding.append(down)
        encoding.append(up)
    return decoding, encoding


def _run_tiled(
    run: Callable[[Array], Array], clip: Array | np.ndarray, down: _Steps, across: _Steps
) -> Float32[np.ndarray, "1 _ _ _ _"]:
    """One clip through `run`, tile by tile; beside the result, one row of tiles is held."""
    height, width = clip.shape[-2:]
    if height <= down.tile and width <= across.tile:
        return np.asarray(run(clip))
    rows, above = [], None
    for top in range(0, height, down.step):
        row = []
        for left in range(0, width, across.step):
            part = clip[..., top : top + down.tile, left : left + across.tile]
            # A copy, to blend in place: the next tiles blend with what is blended already.
            tile = np.array(run(part))
            if above is not None:
                _blend(above[len(row)], tile, down.blended, axis=_ROWS)
            if row:
                _blend(row[-1], tile, across.blended, axis=_COLUMNS)
            row.append(tile)
        kept = [tile[..., : down.kept, : across.kept] for tile in row]
        rows.append(np.concatenate(kept, axis=_COLUMNS))
        above = row
    return np.concatenate(rows, axis=_ROWS)


def _blend(before: np.ndarray, tile: np.ndarray, extent: int, *, axis: int) -> None:
    """Fades the start of `tile` in over the end of `before`, along an axis, in place."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if not extent:
        return
    weight = np.arange(extent) / extent
    # The axis last, so that both cases are one; views, so that the tile itself changes.
    end = np.moveaxis(before, axis, -1)[..., -extent:]
    start = np.moveaxis(tile, axis, -1)[..., :extent]
    start[...] = end * np.float32(1 - weight) + start * np.float32(weight)
