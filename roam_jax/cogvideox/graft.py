"""CogVideoX with looped blocks, action cells and an action decoder grafted on it.

The backbone's parameters keep their names and values; the loop adds `blocks/loop/*` and everything
else that is new is `graft/*`. Action cells run through the same blocks as the video, with its
weights, modulation and round embedding. With the gate `identity` and the default topology the
grafted model is the backbone at initialisation, for any number of rounds.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.segments import SegmentTable
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft_canvas import FUTURE, PAST
from roam_jax.cogvideox.transformer import Block, PatchEmbed, Readout, TimeEmbedding
from roam_jax.contracts import ACTION_DIM
from roam_jax.model.embed import QueryCells, VectorCells, time_positions
from roam_jax.model.heads import PooledDecoder, TokensDecoder
from roam_jax.model.looped import LoopedBlock, Streams

STREAMS = ("text", "video")
DECODERS = ("tokens", "pooled")

# Which parameters each policy trains, beside the loop and everything under graft/.
_OUTPUT_SIDE = r"^(time_embedding|norm_final|norm_out|proj_out)/"
FREEZE_POLICIES = {
    "full": (),
    "half": (_OUTPUT_SIDE,),
    "none": (_OUTPUT_SIDE, r"^patch_embed/"),
    "unfrozen": (r"^(?!vae/)",),
}


def trainable_patterns(policy: str) -> tuple[str, ...]:
    """Regular expressions of the parameters that a freeze policy trains.

    Raises:
        ValueError: no such policy.
    """
    if policy not in FREEZE_POLICIES:
        raise ValueError(f"freeze = {policy!r}: expected one of {', '.join(FREEZE_POLICIES)}")
    return (r"^blocks/loop/", r"^graft/", *FREEZE_POLICIES[policy])


@dataclasses.dataclass(frozen=True)
class GraftConfig:
    """What the graft adds to a backbone.

    Args:
        rounds: trained number of rounds.
        gate: identity | sigmoid | off.
        gate_scope: round | token.
        decoder: tokens | pooled.
    """

    rounds: int
    gate: str = "identity"
    gate_scope: str = "round"
    decoder: str = "tokens"

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"loop.rounds = {self.rounds}: expected at least 1")
        if self.decoder not in DECODERS:
            raise ValueError(
                f"decoder.kind = {self.decoder!r}: expected one of {', '.join(DECODERS)}"
            )


class ActionGraft(nn.Module):
    """Everything under `graft/`: encoders of the action cells and the action decoder."""

    layout: CanvasLayout
    decoder_kind: str

    def setup(self):
        """Declares encoders for the regions that the layout has."""
        width = self.layout.d_model
        if PAST in self.layout.regions:
            self.past_action = VectorCells(width)
        if FUTURE in self.layout.regions:
            self.future_action = QueryCells(width)
        head = TokensDecoder if self.decoder_kind == "tokens" else PooledDecoder
        self.decoder = head(ACTION_DIM)

    def cells(self, past_actions: Float[Array, "B P A"]) -> list[Array]:
        """The new cells in layout order, each (B, n, D)."""
        cells, past = [], 0
        if PAST in self.layout.regions:
            past = self.layout.region_numel(PAST)
            cells.append(self.past_action(past_actions, self._positions(0, past)))
        if FUTURE in self.layout.regions:
            times = self._positions(past, past + self.layout.region_numel(FUTURE))
            cells.append(self.future_action(past_actions.shape[0], times))
        return cells

    def _positions(self, start: int, stop: int) -> np.ndarray:
        return time_positions(np.arange(start, stop), self.layout.d_model)

    def decode(self, velocity: Float[Array, "B F C H W"], extra: Float[Array, "B N D"]) -> Array:
        """Actions (B, P, A) from the last future cells, or (B, 1, A) from the pooled output."""
        if self.decoder_kind == "pooled":
            return self.decoder(velocity)
        return self.decoder(extra[:, -self.layout.region_numel(FUTURE) :])


class GraftedTransformer(nn.Module):
    """A looped CogVideoX transformer that also predicts actions.

    Args:
        config: the backbone's.
        graft_config: loops and decoder.
        layout, topology: from `graft_canvas`, for one window length and frame size.
        dtype: compute dtype; parameters keep theirs.
    """

    config: TransformerConfig
    graft_config: GraftConfig
    layout: CanvasLayout
    topology: CanvasTopology
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Declares the backbone under its own names, the loop beside its blocks."""
        self.patch_embed = PatchEmbed(self.config, dtype=self.dtype)
        self.time_embedding = TimeEmbedding(self.config, dtype=self.dtype)
        self.blocks = LoopedBlock(
            make_block=lambda: Block(self.config, dtype=self.dtype),
            call=_call_block,
            gate=self.graft_config.gate,
            gate_scope=self.graft_config.gate_scope,
            trained_rounds=self.graft_config.rounds,
            width=self.config.width,
            streams=STREAMS,
        )
        self.readout = Readout(self.config, dtype=self.dtype)
        nn.share_scope(self, self.readout)
        self.graft = ActionGraft(self.layout, self.graft_config.decoder)

    def __call__(
        self,
        latents: Float[Array, "B F C H W"],
        text: Float[Array, "B S E"],
        timesteps: Num[Array, " B"],
        past_actions: Float[Array, "B P A"],
        *,
        rounds: int,
        extrapolate: str | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Predicts velocity and actions.

        Args:
            latents: noisy latents; frames before `t_current` clean.
            text: text embedding.
            timesteps: diffusion step of each row, 0..999.
            past_actions: observed actions, normalised; (B, 0, 7) with `t_current` = 1.
            rounds: static number of rounds.
            extrapolate: static; "last" allows more rounds than were trained.

        Returns:
            {"velocity": (B, F, C, H, W), "actions": (B, P or 1, 7)} and, as intermediates, the
            round measures: measure -> stream -> (depth, rounds).
        """
        text, video = self.patch_embed(latents, text)
        cells = self.graft.cells(past_actions)
        video = jnp.concatenate([video.astype(jnp.float32), *cells], axis=1)
        streams = {"text": text.astype(jnp.float32), "video": video}
        temb = self.time_embedding(timesteps)
        table = self._table() if cells else None

        def block(looped: LoopedBlock, state: Streams, _):
            return looped(state, temb, table, rounds=rounds, extrapolate=extrapolate)

        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.num_layers,
        )
        streams, measures = scanned(self.blocks, streams, None)
        tokens = self.layout.region_numel("visual")
        video, extra = jnp.split(streams["video"], [tokens], axis=1)
        velocity = self.readout(video.astype(self.dtype), temb, latents.shape)
        return {"velocity": velocity, "actions": self.graft.decode(velocity, extra)}, measures

    def _table(self) -> SegmentTable:
        return self.topology.segment_table(self.layout)[0]


def _call_block(block: Block, streams: Streams, temb, table) -> Streams:
    text, video = (streams[name].astype(block.dtype) for name in STREAMS)
    outputs = block(text, video, temb, table=table)
    return {n: x.astype(jnp.float32) for n, x in zip(STREAMS, outputs, strict=True)}
