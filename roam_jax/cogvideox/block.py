"""One block of the CogVideoX transformer: joint attention of text and video, then feed-forward.

A port of diffusers' `CogVideoXBlock`; both layers are modulated by the timestep. What attends to
what, which latent frame a cell belongs to and which cells go out is said by `JointCells`; without
it the block is diffusers' own. Norm statistics and softmax are float32 in every dtype.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from roam_jax import logical
from roam_jax.attention import sharded
from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.shards import CellSplit
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import Conditioning
from roam_jax.logical import BATCH, DEPTH, MODULATION, WIDTH, axes, constrain
from roam_jax.model import block as canvas_block
from roam_jax.model.block import FeedForward
from roam_jax.model.edge_kinds import KindedAttention
from roam_jax.model.geometry import Geometry
from roam_jax.model.looped import LAYER_OUTPUT

# Small, as in adaLN-Zero (Peebles & Xie 2023, section 3.2): blocks start near the identity and the
# prediction near 0, which trains best. Not zero, so that a fresh model is no constant, and every
# parameter has a gradient at the first step.
SMALL = nn.initializers.normal(0.02)
# How the parameters of the blocks are split, stacked over depth.
BLOCK_RULES = (
    *canvas_block.BLOCK_RULES,
    (r"^blocks/norm[12]/linear/kernel$", axes(DEPTH, WIDTH, MODULATION)),
    (r"^blocks/norm[12]/linear/bias$", axes(DEPTH, MODULATION)),
)


# Text (B, S, D) and video (B, N, D).
TwoStreams = tuple[Array, Array]


def layer_norm(name: str, *, epsilon: float, dtype: Any) -> nn.LayerNorm:
    """LayerNorm with torch's variance, the two-pass one."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def _of_text(values: Float[Array, "B *F D"]) -> Float[Array, "B 1 D"]:
    """The text's row of what was computed from `temb`."""
    return values[:, None] if values.ndim == 2 else values[:, :1]


def of_video(
    values: Float[Array, "B *F D"], frames: Int[np.ndarray, " N"] | None
) -> Float[Array, "B N_or_1 D"]:
    """The same for every video cell, by its latent frame."""
    return values[:, None] if frames is None else values[:, 1 + frames]


def modulate(
    tokens: Float[Array, "B N D"],
    shift: Float[Array, "B N_or_1 D"],
    scale: Float[Array, "B N_or_1 D"],
) -> Float[Array, "B N D"]:
    """Scales and shifts tokens; a scale of 0 leaves them."""
    return tokens * (1 + scale) + shift


class AdaNorm(nn.Module):
    """One LayerNorm for both streams, then a shift, scale and gate of each from the timestep."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S D"],
        video: Float[Array, "B N D"],
        temb: Conditioning,
        frames: Int[np.ndarray, " N"] | None = None,
    ) -> tuple[TwoStreams, Float[Array, "B 1 D"], Float[Array, "B N_or_1 D"]]:
        """Text and video, normed; the text's and the video's gates."""
        linear = nn.Dense(6 * self.config.width, dtype=self.dtype, kernel_init=SMALL, name="linear")
        rows = linear(nn.silu(temb))
        # Few numbers, which every cell is multiplied by: on all devices, or these would split the
        # channels of the cells as well.
        rows = constrain(rows, BATCH, *[None] * (rows.ndim - 1))
        video_rows, text_rows = jnp.split(rows, 2, axis=-1)
        shift, scale, gate = jnp.split(of_video(video_rows, frames), 3, axis=-1)
        text_shift, text_scale, text_gate = jnp.split(_of_text(text_rows), 3, axis=-1)
        norm = layer_norm("norm", epsilon=self.config.norm_eps, dtype=self.dtype)
        text = modulate(norm(text), text_shift, text_scale)
        video = modulate(norm(video), shift, scale)
        return (text, video), text_gate, gate


@dataclasses.dataclass(frozen=True, eq=False)
class JointCells:
    """What is known of the joint sequence [text | video] of one application of a block; static.

    Args:
        plan: who attends to whom; None = all to all.
        frames: latent frame of each video cell, where frames have timesteps of their own.
        coordinates: of every cell, where positions enter queries and keys.
        kept: places of the cells that go out, among those that come in, rising; None = all.
        split: of text and video over devices, each with empty cells at its end; then the joint
            sequence is [text | video] of one device after the other. None = each has all.
    """

    plan: AttentionPlan | None = None
    frames: Int[np.ndarray, " N"] | None = None
    coordinates: Float[np.ndarray, "M 3"] | None = None
    kept: Int[np.ndarray, " _"] | None = None
    split: CellSplit | None = None

    def padded(self, streams: dict[str, Array]) -> dict[str, Array]:
        """Text and video with the empty cells that make them divide."""
        if self.split is None:
            return streams
        # What makes the cells is small, and splits them otherwise: all of it on every device. XLA
        # adds up the gradient of a convolution wrongly whose outputs are split here and there.
        streams = {n: constrain(x, BATCH, None, None) for n, x in streams.items()}
        lengths = zip(streams.items(), self.split.lengths, self.split.padded, strict=True)
        return {n: jnp.pad(x, ((0, 0), (0, b - a), (0, 0))) for (n, x), a, b in lengths}

    def join(
        self, text: Float[Array, "B S D"], video: Float[Array, "B N D"]
    ) -> Float[Array, "B M D"]:
        """The joint sequence."""
        shards = 1 if self.split is None else self.split.shards
        parts = [_by_device(stream, shards) for stream in (text, video)]
        joint = jnp.concatenate(parts, axis=2)
        joint = einops.rearrange(joint, "B shards N D -> B (shards N) D")
        return constrain(joint, BATCH, logical.CELLS, None)

    def take_apart(
        self, joint: Float[Array, "B M D"], texts: int
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B N D"]]:
        """The inverse of `join`, with so many cells of text."""
        shards = 1 if self.split is None else self.split.shards
        parts = jnp.split(_by_device(joint, shards), [texts // shards], axis=2)
        text, video = (einops.rearrange(x, "B shards N D -> B (shards N) D") for x in parts)
        return (
            constrain(text, BATCH, logical.CELLS, None),
            constrain(video, BATCH, logical.CELLS, None),
        )

    def kept_places(self, border: int) -> tuple[np.ndarray, np.ndarray]:
        """`kept` as places in the text, of `border` cells, and places in the video."""
        return self.kept[self.kept < border], self.kept[self.kept >= border] - border

    def outgoing(
        self, text: Float[Array, "B S D"], video: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B _ D"], Float[Array, "B _ D"]]:
        """Those cells of both streams that go out."""
        if self.kept is None:
            return text, video
        kept_text, kept_video = self.kept_places(text.shape[1])
        return text[:, kept_text], video[:, kept_video]

    def queries(self, tokens: Float[Array, "B M D"]) -> Float[Array, "B N D"]:
        """Those tokens of the joint sequence that go out."""
        return tokens if self.kept is None else tokens[:, self.kept]

    @property
    def query_coordinates(self) -> Float[np.ndarray, "N 3"] | None:
        """Of the cells that go out."""
        whole = self.coordinates is None or self.kept is None
        return self.coordinates if whole else self.coordinates[self.kept]


def _by_device(cells: Float[Array, "B N D"], shards: int) -> Float[Array, "B shards M D"]:
    """Cells of one device after the other, with an axis over devices."""
    cells = constrain(cells, BATCH, logical.CELLS, None)
    apart = einops.rearrange(cells, "B (shards N) D -> B shards N D", shards=shards)
    return constrain(apart, BATCH, logical.CELLS, None, None)


# All cells to all cells, and out again.
ALL_CELLS = JointCells()


class JointAttention(nn.Module):
    """Self-attention of the joint sequence, queries and keys normed per head.

    Args:
        config: sizes.
        dtype: compute dtype.
        geometry: how coordinates enter queries and keys, one of `geometry.GEOMETRIES`.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    geometry: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B M D"],
        cells: JointCells = ALL_CELLS,
        inverse_temperature: Float[Array, ""] | None = None,
    ) -> Float[Array, "B N D"]:
        """What the cells that go out read; their scores are multiplied by the temperature."""

        def project(name, tokens):
            heads = nn.Dense(self.config.width, dtype=self.dtype, name=f"to_{name}")(tokens)
            heads = einops.rearrange(
                heads, "B N (K D) -> B N K D", K=self.config.num_attention_heads
            )
            if name == "v":
                return heads
            return layer_norm(f"norm_{name}", epsilon=1e-6, dtype=self.dtype)(heads)

        plain = project("q", cells.queries(tokens)), project("k", tokens)
        value = project("v", tokens)
        query, key = plain
        if self.geometry != "none":
            geometry = Geometry(self.geometry, self.config.num_attention_heads, name="geometry")
            query, key = geometry(query, key, cells.query_coordinates, cells.coordinates)
        if inverse_temperature is not None:
            query = query * inverse_temperature.astype(query.dtype)
        if cells.plan is None:
            attended = sharded.attention(query, key, value, split=cells.split)
        else:
            edges = KindedAttention(name="edges")
            attended = edges(query, key, value, cells.plan, plain=plain, split=cells.split)
        attended = einops.rearrange(attended, "B N K D -> B N (K D)")
        out = nn.Dense(self.config.width, dtype=self.dtype, name="to_out")(attended)
        return checkpoint_name(constrain(out, BATCH, logical.CELLS, None), LAYER_OUTPUT)


class Block(nn.Module):
    """Joint attention, then a feed-forward layer, each gated onto both streams.

    What the cells of `video` are is the caller's affair: all of them go through the video stream's
    modulation.

    Args:
        config: sizes.
        dtype: compute dtype.
        geometry: of the attention.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    geometry: str = "none"

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S D"],
        video: Float[Array, "B N D"],
        temb: Conditioning,
        cells: JointCells = ALL_CELLS,
        inverse_temperature: Float[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B _ D"], Float[Array, "B _ D"]]:
        """Both streams after the block, as far as they are kept.

        Args:
            text, video: the two streams.
            temb: time embedding of each batch row (B, E); or, with `cells.frames`, of the text and
                of every latent frame (B, 1 + F, E).
            cells: topology, and which cells go out.
            inverse_temperature: of the attention; None = 1.
        """
        norm = AdaNorm(self.config, self.dtype, name="norm1")
        normed, *gates = norm(text, video, temb, cells.frames)
        attend = JointAttention(self.config, self.dtype, self.geometry, name="attn1")
        change = attend(cells.join(*normed), cells, inverse_temperature)
        text, video, gates, frames = self._outgoing(text, video, gates, cells)
        text, video = _gated((text, video), gates, cells.take_apart(change, text.shape[1]))
        norm = AdaNorm(self.config, self.dtype, name="norm2")
        normed, *gates = norm(text, video, temb, frames)
        change = FeedForward(self.dtype, name="ff")(cells.join(*normed))
        return _gated((text, video), gates, cells.take_apart(change, text.shape[1]))

    @staticmethod
    def _outgoing(text: Array, video: Array, gates: list[Array], cells: JointCells):
        """Streams, gates and frames of the cells that go out."""
        if cells.kept is None:
            return text, video, gates, cells.frames
        text_gate, gate = gates
        frames = cells.frames
        if frames is not None:
            _, kept = cells.kept_places(text.shape[1])
            gate, frames = gate[:, kept], frames[kept]
        return *cells.outgoing(text, video), [text_gate, gate], frames


def _gated(streams: TwoStreams, gates: list[Array], changes: TwoStreams) -> TwoStreams:
    """Text and video, changes added by their gates."""
    text, video = (x + g * c for x, g, c in zip(streams, gates, changes, strict=True))
    return text, video
