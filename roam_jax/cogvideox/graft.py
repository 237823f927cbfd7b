"""CogVideoX with looped blocks, new regions and decoders grafted on it.

The backbone's parameters keep their names and values; the loop adds `blocks/loop/*` and everything
else that is new is `graft/*`. New cells run through the same blocks as the video, with its
weights, modulation and round embedding; those of further videos are made and read by the backbone's
own patch embedding and readout. With the gate `identity` and the default topology the grafted model
is the backbone at initialisation, for any number of rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import Conditioning, PatchEmbed, TimeEmbedding, condition
from roam_jax.cogvideox.graft_canvas import camera_regions, latent_frames, view_regions
from roam_jax.cogvideox.graft_cells import Graft
from roam_jax.cogvideox.graft_config import GraftConfig
from roam_jax.cogvideox.transformer import LAYER_OUTPUT, Block, Readout
from roam_jax.model.looped import LoopedBlock, Streams

STREAMS = ("text", "video")


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
            saved=(LAYER_OUTPUT,),
        )
        self.readout = Readout(self.config, dtype=self.dtype)
        nn.share_scope(self, self.readout)
        self.graft = Graft(self.layout, self.graft_config)

    def __call__(
        self,
        latents: Float[Array, "B F C H W"],
        text: Float[Array, "B S E"],
        timesteps: Num[Array, " B"] | Num[Array, "B F"],
        data: Mapping[str, Float[Array, "B _ ..."]],
        *,
        rounds: int,
        action_timesteps: Int[Array, " B"] | None = None,
        extrapolate: str | None = None,
    ) -> tuple[dict[str, Array], dict]:
        """Predicts velocity, actions and whatever else the layout's regions predict.

        Args:
            latents: noisy latents; frames before `t_current` clean.
            text: text embedding.
            timesteps: diffusion step 0..999, one a row (B,) or one a latent frame (B, F). With the
                latter, video and new cells are modulated by their frame's, text by the largest.
            data: region -> vectors (B, N, A) of the observed regions, normalised; with the decoder
                `tokens_diffused` also future_action -> noised actions; and view region -> latents
                (B, frames, C, H, W), clean for `observed_*` and `goal`, noisy for `future_*`.
            rounds: static number of rounds.
            action_timesteps: what the actions are noised to, with `tokens_diffused`.
            extrapolate: static; "last" allows more rounds than were trained.

        Returns:
            {"velocity": (B, F, C, H, W)} with the outputs of `Graft.decode`, "camera_velocity"
            (B, V, F - t_current, C, H, W) where cameras are predicted, and, as intermediates, the
            round measures: measure -> stream -> (depth, rounds). "video" there includes the new
            cells.

        Raises:
            ValueError: shapes or data do not fit the layout, or too many rounds.
        """
        data = {**data, **self._patches(data)}
        text, video = self.patch_embed(latents, text)
        cells = self.graft.cells(data, action_timesteps, batch=latents.shape[0])
        visual = video.shape[1]
        streams = {
            "text": text.astype(jnp.float32),
            "video": jnp.concatenate([video.astype(jnp.float32), *cells], axis=1),
        }
        temb, frames = condition(self.time_embedding, timesteps, latent_frames(self.layout))
        table = self.topology.segment_table(self.layout)[0] if cells else None
        streams, tapped, measures = self._run_blocks(
            streams, temb, table, frames, visual=visual, rounds=rounds, extrapolate=extrapolate
        )
        video, extra = jnp.split(streams["video"], [visual], axis=1)
        own = None if frames is None else frames[:visual]
        velocity = self.readout(video.astype(self.dtype), temb, latents.shape, own)
        cells = self.graft.by_region(extra)
        outputs = {"velocity": velocity, **self.graft.decode(velocity, cells, tapped)}
        outputs |= self._cameras(cells, temb, latents.shape, frames)
        return outputs, measures

    def _run_blocks(
        self,
        streams: Streams,
        *conditions: Any,
        visual: int,
        rounds: int,
        extrapolate: str | None,
    ) -> tuple[Streams, Float[Array, "taps B _ D"], dict]:
        """All blocks, one after the other, each in rounds.

        Args:
            streams: cells before the first block.
            conditions: what every block takes beside them: `_call_block`'s temb, table and frames.
            visual: how many of the video's cells are the backbone's own.
            rounds, extrapolate: as for the call.

        Returns:
            The streams after the last block; the backbone's own video cells after each block that
            the decoder reads; measures by block.
        """
        layers = self.config.num_layers
        taps = self.graft_config.taps(layers)

        def block(looped: LoopedBlock, carry: tuple[Streams, Array], number: Array):
            state, tapped = carry
            state, measures = looped(state, *conditions, rounds=rounds, extrapolate=extrapolate)
            if taps:
                here = (jnp.asarray(taps) == number)[:, None, None, None]
                tapped = jnp.where(here, state["video"][None, :, :visual], tapped)
            return (state, tapped), measures

        scanned = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers
        )
        size, _, width = streams["video"].shape
        tapped = jnp.zeros((len(taps), size, visual, width), jnp.float32)
        (streams, tapped), measures = scanned(self.blocks, (streams, tapped), jnp.arange(layers))
        return streams, tapped, measures

    def _patches(self, data: Mapping[str, Array]) -> dict[str, Float[Array, "B _ D"]]:
        """View region -> its latents through the backbone's patch embedding, at its positions.

        What belongs to one camera is embedded as one video, so that a later frame has a later
        position. A region without data is left to the check of `Graft.cells`.
        """
        found: dict[str, Array] = {}
        for regions in view_regions(self.layout):
            names = [name for name in regions if name in data]
            if not names:
                continue
            for name in names:
                frames = self.layout.region_spec(name).shape[0]
                if data[name].shape[1] != frames:
                    raise ValueError(
                        f"latents of the region {name!r} have shape {data[name].shape}, expected "
                        f"{frames} frames"
                    )
            video = jnp.concatenate([data[name] for name in names], axis=1)
            cells = self.patch_embed.video(video)
            ends = np.cumsum([self.layout.region_numel(name) for name in names])[:-1]
            found |= zip(names, jnp.split(cells, ends.tolist(), axis=1), strict=True)
        return found

    def _cameras(
        self,
        cells: Mapping[str, Float[Array, "B _ D"]],
        temb: Conditioning,
        shape: tuple[int, ...],
        frames: Int[np.ndarray, " N"] | None,
    ) -> dict[str, Float[Array, "B V F C H W"]]:
        """Velocity of the predicted cameras by the backbone's readout; empty where there is none.

        Args:
            cells: all new ones, by region.
            temb: of the blocks.
            shape: of the video's latents.
            frames: latent frame of each cell but the text's where frames have timesteps of their
                own, else None.
        """
        names = [regions[1] for regions in camera_regions(self.layout).values() if regions[1:]]
        if not names:
            return {}
        tokens = jnp.concatenate([cells[name] for name in names], axis=1)
        own = None if frames is None else latent_frames(self.layout, names)
        size, count, *pixels = shape
        joined = (size, len(names) * (count - self.layout.t_current), *pixels)
        velocity = self.readout(tokens.astype(self.dtype), temb, joined, own)
        velocity = einops.rearrange(velocity, "B (V F) C H W -> B V F C H W", V=len(names))
        return {"camera_velocity": velocity}


def _call_block(block: Block, streams: Streams, temb, table, frames) -> Streams:
    text, video = (streams[name].astype(block.dtype) for name in STREAMS)
    outputs = block(text, video, temb, table=table, frames=frames)
    return {n: x.astype(jnp.float32) for n, x in zip(STREAMS, outputs, strict=True)}
