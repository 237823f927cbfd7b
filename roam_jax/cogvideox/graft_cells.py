"""Everything under `graft/`: encoders of the new regions' cells, and the decoders."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float, Int

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.cogvideox.graft_canvas import BACKBONE_REGIONS, FUTURE, view_regions
from roam_jax.cogvideox.graft_config import CELL_DECODERS, PREDICTED, GraftConfig
from roam_jax.contracts import FRAMES_PER_LATENT
from roam_jax.model.embed import NoisedCells, PatchCells, QueryCells, VectorCells, cell_positions
from roam_jax.model.heads import (
    CrossAttentionDecoder,
    PerFrameDecoder,
    PooledDecoder,
    TokensDecoder,
)

# Regions that hold data, and the field of a batch that it comes from.
DATA_FIELDS = {
    "past_action": "past_actions",
    "observed_proprio": "observed_proprio",
    "observed_reward": "observed_reward",
}


class Graft(nn.Module):
    """Encoders and decoders of the regions that a layout has.

    Args:
        layout: from `graft_layout`.
        config: the decoder, and the sizes of what is decoded.
    """

    layout: CanvasLayout
    config: GraftConfig

    def setup(self):
        """Names each encoder after its region, its decoder REGION_decoder."""
        kind, actions = self.config.decoder, self.config.action_dim
        views = {name for regions in view_regions(self.layout) for name in regions}
        for name in self._new_regions:
            if name in views:
                encoder = PatchCells
            elif name in DATA_FIELDS:
                encoder = VectorCells
            elif name == FUTURE and kind == "tokens_diffused":
                encoder = NoisedCells
            else:
                encoder = QueryCells
            setattr(self, name, encoder(self.layout.d_model))
            if name in PREDICTED:
                size = getattr(self.config, PREDICTED[name][1])
                setattr(self, f"{name}_decoder", TokensDecoder(size))
        chunk = FRAMES_PER_LATENT * (self.layout.T - self.layout.t_current)
        if kind == "cross_attention":
            self.decoder = CrossAttentionDecoder(actions, chunk)
        elif kind in CELL_DECODERS:
            self.decoder = TokensDecoder(actions)
        else:
            heads = {"pooled": PooledDecoder, "per_frame": PerFrameDecoder}
            self.decoder = heads[kind](actions)

    def cells(
        self,
        data: Mapping[str, Float[Array, "B _ _"]],
        action_timesteps: Int[Array, " B"] | None,
        *,
        batch: int,
    ) -> list[Float[Array, "B _ D"]]:
        """The new cells, region by region in layout order.

        Args:
            data: region -> vectors, for each region that holds data, or embedded patches, for each
                view; with `tokens_diffused` the noised actions as well.
            action_timesteps: noise level of the actions, with `tokens_diffused`.
            batch: batch size B.

        Raises:
            ValueError: data is missing, or there is data for a region that has none; noise levels
                without noised actions, or noised actions without them.
        """
        self._check(data, action_timesteps)
        cells = []
        for name in self._new_regions:
            encoder = getattr(self, name)
            if isinstance(encoder, PatchCells):
                cells.append(encoder(data[name]))
                continue
            positions = cell_positions(self.layout, name)
            if isinstance(encoder, NoisedCells):
                cells.append(encoder(data[name], positions, action_timesteps))
            elif isinstance(encoder, VectorCells):
                cells.append(encoder(data[name], positions))
            else:
                cells.append(encoder(batch, positions))
        return cells

    def decode(
        self,
        velocity: Float[Array, "B F C H W"] | None,
        cells: Mapping[str, Float[Array, "B _ D"]],
        activations: Float[Array, "taps B M D"],
    ) -> dict[str, Array]:
        """Actions and whatever else is predicted of vectors, normalised units.

        Args:
            velocity: the backbone's output; None where it is not wanted.
            cells: after the last block, by region; those that are not wanted are missing.
            activations: video cells after each block that the decoder reads.

        Returns:
            "actions" (B, P, A), or (B, 1, A) from `pooled`, where `tokens_diffused` gives their
            velocity; "proprio" (B, F - t_current, J) and "reward" (B, F - t_current, 1) where they
            have regions. What is read from something that is missing is left out.
        """
        kind, outputs = self.config.decoder, {}
        if kind in CELL_DECODERS and FUTURE in cells:
            outputs["actions"] = self.decoder(cells[FUTURE])
        elif kind == "cross_attention":
            outputs["actions"] = self.decoder(activations)
        elif kind == "per_frame" and velocity is not None:
            outputs["actions"] = self.decoder(velocity[:, self.layout.t_current :])
        elif kind == "pooled" and velocity is not None:
            outputs["actions"] = self.decoder(velocity)
        for name, (output, _) in PREDICTED.items():
            if name in cells:
                outputs[output] = getattr(self, f"{name}_decoder")(cells[name])
        return outputs

    @property
    def _new_regions(self) -> list[str]:
        return [name for name in self.layout.regions if name not in BACKBONE_REGIONS]

    def _check(self, data: Mapping[str, Array], action_timesteps: Array | None) -> None:
        expected = {
            name for name in self._new_regions if not isinstance(getattr(self, name), QueryCells)
        }
        if set(data) != expected:
            raise ValueError(
                f"data for the regions {sorted(data)}, expected it for {sorted(expected)}"
            )
        if (action_timesteps is not None) != (self.config.decoder == "tokens_diffused"):
            found = "without" if action_timesteps is None else "with"
            raise ValueError(
                f"decoder.kind = {self.config.decoder!r} {found} action_timesteps: expected them "
                "with tokens_diffused, and with no other decoder"
            )
