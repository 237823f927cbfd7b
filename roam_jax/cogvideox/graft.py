"""CogVideoX with looped blocks, new regions and decoders grafted on it.

The backbone's parameters keep their names and values; the loop adds `blocks/loop/*` and everything
else that is new is `graft/*`. New cells run through the same blocks as the video, with its
weights, modulation and round embedding; those of further videos are made and read by the backbone's
own patch embedding and readout. With the gate `identity` and the default topology the grafted model
is the backbone at initialisation, for any number of rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from roam_jax import logical
from roam_jax.attention.geometry import canvas_coordinates
from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.cogvideox.block import Block, JointCells
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import Conditioning, PatchEmbed, TimeEmbedding, condition
from roam_jax.cogvideox.graft_canvas import camera_regions, latent_frames, view_regions
from roam_jax.cogvideox.graft_cells import Graft
from roam_jax.cogvideox.graft_config import GraftConfig
from roam_jax.cogvideox.graft_passes import Passes, plan_passes
from roam_jax.cogvideox.transformer import Readout
from roam_jax.model.looped import LAYER_OUTPUT, LoopedBlock, Round, Streams
from roam_jax.spelling import check_choice

STREAMS = ("text", "video")
# Among the regions of a measure: all cells together.
ALL = "all"


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
        loop = self.graft_config
        self.blocks = LoopedBlock(
            make_block=lambda: Block(self.config, self.dtype, loop.geometry),
            call=_call_block,
            gate=loop.gate,
            gate_scope=loop.gate_scope,
            trained_rounds=loop.rounds,
            width=self.config.width,
            streams=STREAMS,
            saved=(LAYER_OUTPUT,),
            kept=loop.remat,
            inverse_temperatures=loop.inverse_temperatures,
            select=_select_cells,
            parts=lambda keep, temb, cells: (keep or cells).parts,
            reinject=loop.reinject,
            halting=loop.halting,
            backprop_rounds=loop.backprop_rounds,
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
        exit: Int[Array, ""] | None = None,
        threshold: float | None = None,
        wanted: tuple[str, ...] | None = None,
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
            exit: rounds after which every block is left, 1..rounds; None = `rounds`.
            threshold: static; with learned halting, the stopped mass from which a cell stops for
                good; None = never.
            wanted: static; names of the outputs that are wanted, None = all. What cannot reach them
                is not computed; the decoder `cross_attention`, which reads blocks on the way, an
                `exit`, and cells that are split over devices leave no saving.

        Returns:
            {"velocity": (B, F, C, H, W)} with the outputs of `Graft.decode`, "camera_velocity"
            (B, V, F - t_current, C, H, W) where cameras are predicted, and, as intermediates, the
            round measures: measure -> region -> (depth, rounds); with `wanted` they are over the
            cells that a round keeps. With learned halting "running" is among them, the share that
            still runs when a round begins, also of "all" cells; it carries gradients.

        Raises:
            ValueError: shapes or data do not fit the layout, too many rounds, a threshold without
                halting, or nothing or an unknown output is wanted.
        """
        outputs = self.graft_config.outputs(self.layout)
        if wanted is not None:
            check_wanted(wanted, outputs)
        data = {**data, **self._patches(data)}
        text, video = self.patch_embed(latents, text)
        cells = self.graft.cells(data, action_timesteps, batch=latents.shape[0])
        streams = {
            "text": text.astype(jnp.float32),
            "video": jnp.concatenate([video.astype(jnp.float32), *cells], axis=1),
        }
        temb, frames = condition(self.time_embedding, timesteps, latent_frames(self.layout))
        shards = logical.shards(video, logical.CELLS)
        kept, whole = None, self.is_initializing() or self._taps or exit is not None
        if wanted is not None and not whole and shards == 1:
            kept = tuple(dict.fromkeys(r for name in wanted for r in outputs[name]))
        passes = self._passes(frames, rounds=rounds, kept=kept, shards=shards)
        options = {"extrapolate": extrapolate, "exit": exit, "threshold": threshold}
        streams, tapped, measures = self._run_blocks(
            streams, temb, passes, visual=video.shape[1], rounds=rounds, **options
        )
        if "running" in measures:
            measures["running"][ALL] = passes.mean_of_cells(measures["running"])
        regions = [name for name in self.layout.regions if name != "text"]
        cells = self._by_region(streams["video"], [r for r in regions if kept is None or r in kept])
        found = {}
        if "visual" in cells:
            own = None if frames is None else frames[: video.shape[1]]
            video = cells["visual"].astype(self.dtype)
            found["velocity"] = self.readout(video, temb, latents.shape, own)
        found |= self.graft.decode(found.get("velocity"), cells, tapped)
        found |= self._cameras(cells, temb, latents.shape, frames)
        return {n: x for n, x in found.items() if wanted is None or n in wanted}, measures

    @property
    def _taps(self) -> tuple[int, ...]:
        """Blocks whose activations the decoder reads."""
        return self.graft_config.taps(self.config.num_layers)

    def _passes(
        self,
        frames: np.ndarray | None,
        *,
        rounds: int,
        kept: tuple[str, ...] | None,
        shards: int,
    ) -> Passes:
        coordinates = None
        if self.graft_config.geometry != "none":
            coordinates = canvas_coordinates(self.layout, without_place=("text",))
        return plan_passes(
            self.layout,
            self.topology,
            blocks=self.config.num_layers,
            rounds=rounds,
            frames=frames,
            coordinates=coordinates,
            wanted=kept,
            shards=shards,
        )

    def _by_region(
        self, cells: Float[Array, "B N D"], regions: list[str]
    ) -> dict[str, Float[Array, "B _ D"]]:
        """The video stream's cells, taken apart."""
        ends = np.cumsum([self.layout.region_numel(name) for name in regions])[:-1]
        return dict(zip(regions, jnp.split(cells, ends.tolist(), axis=1), strict=True))

    def _run_blocks(
        self,
        streams: Streams,
        temb: Conditioning,
        passes: Passes,
        *,
        visual: int,
        rounds: int,
        **options: Any,
    ) -> tuple[Streams, Float[Array, "taps B _ D"], dict]:
        """All blocks, one after the other, each in rounds.

        Args:
            streams: cells before the first block.
            temb: of every block.
            passes: the cells of each application.
            visual: how many of the video's cells are the backbone's own.
            rounds, options: as for the call.

        Returns:
            The streams after the last block; the backbone's own video cells after each block that
            the decoder reads; measures by block.
        """
        taps, scanned = self._taps, passes.scanned
        options["rounds"] = rounds

        def block(looped: LoopedBlock, carry: tuple[Streams, Array], number: Array):
            state, tapped = carry
            state, measures = looped(state, temb, passes.cells, **options)
            if taps:
                here = (jnp.asarray(taps) == number)[:, None, None, None]
                tapped = jnp.where(here, state["video"][None, :, :visual], tapped)
            return (state, tapped), measures

        scan = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=scanned
        )
        counts = {name: x.shape[1] for name, x in streams.items()}
        if passes.cells.split is None:
            streams = _select_cells(streams, JointCells(kept=passes.start))
        else:
            streams = passes.cells.padded(streams)
        size, _, width = streams["video"].shape
        tapped, measures = jnp.zeros((len(taps), size, visual, width), jnp.float32), []
        if scanned == self.config.num_layers:
            (streams, tapped), found = scan(self.blocks, (streams, tapped), jnp.arange(scanned))
            if passes.cells.split is not None:
                streams = {n: x[:, : counts[n]] for n, x in streams.items()}
            return streams, tapped, found
        if scanned:
            first = _some_blocks(scan, slice(scanned))
            (streams, _), found = first(self.blocks, (streams, tapped), jnp.arange(scanned))
            measures.append(found)
        for number, tail in enumerate(passes.tails, start=scanned):

            def last(looped: LoopedBlock, state: Streams, tail=tail):
                return looped(state, temb, passes.cells, tail=tail, **options)

            streams, found = _some_blocks(last, number)(self.blocks, streams)
            measures.append(jax.tree.map(lambda x: x[None], found))
        return streams, tapped, jax.tree.map(lambda *parts: jnp.concatenate(parts), *measures)

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
            cells: by region.
            temb: of the blocks.
            shape: of the video's latents.
            frames: latent frame of each cell but the text's where frames have timesteps of their
                own, else None.
        """
        names = [regions[1] for regions in camera_regions(self.layout).values() if regions[1:]]
        if not names or names[0] not in cells:
            return {}
        tokens = jnp.concatenate([cells[name] for name in names], axis=1)
        own = None if frames is None else latent_frames(self.layout, names)
        size, count, *pixels = shape
        joined = (size, len(names) * (count - self.layout.t_current), *pixels)
        velocity = self.readout(tokens.astype(self.dtype), temb, joined, own)
        velocity = einops.rearrange(velocity, "B (V F) C H W -> B V F C H W", V=len(names))
        return {"camera_velocity": velocity}


def check_wanted(wanted: tuple[str, ...], outputs: Collection[str]) -> None:
    """Refuses outputs that a graft does not have.

    Raises:
        ValueError: nothing is wanted, or an unknown output (names the nearest).
    """
    if not wanted:
        raise ValueError(f"wanted = (): expected at least one of {', '.join(outputs)}")
    for name in wanted:
        check_choice("wanted", name, outputs)


def _some_blocks(function: Callable, which: slice | int) -> Callable:
    """`function(blocks, ...)` on some of the stacked blocks, or on one."""
    return nn.map_variables(
        function, "params", trans_in_fn=lambda tree: jax.tree.map(lambda x: x[which], tree)
    )


def _call_block(
    block: Block,
    streams: Streams,
    this: Round,
    temb: Conditioning,
    cells: JointCells,
    *,
    keep: JointCells | None = None,
) -> Streams:
    text, video = (
        logical.constrain(streams[name].astype(block.dtype), logical.BATCH, logical.CELLS, None)
        for name in STREAMS
    )
    outputs = block(text, video, temb, keep or cells, this.inverse_temperature)
    return {n: x.astype(jnp.float32) for n, x in zip(STREAMS, outputs, strict=True)}


def _select_cells(streams: Streams, keep: JointCells) -> Streams:
    return dict(zip(STREAMS, keep.outgoing(*(streams[n] for n in STREAMS)), strict=True))
