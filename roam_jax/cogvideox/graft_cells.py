"""Everything under `graft/`: encoders of the new regions' cells, and the decoders."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.cogvideox.graft_canvas import BACKBONE_REGIONS, FUTURE
from roam_jax.cogvideox.graft_config import CELL_DECODERS
from roam_jax.contracts import ACTION_DIM, FRAMES_PER_LATENT, PROPRIO_DIM, REWARD_DIM
from roam_jax.model.embed import NoisedCells, QueryCells, VectorCells, cell_positions
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
# Regions other than actions that are predicted: name of the output, and its size.
PREDICTED = {"future_proprio": ("proprio", PROPRIO_DIM), "future_reward": ("reward", REWARD_DIM)}


class Graft(nn.Module):
    """Encoders and decoders of the regions that a layout has.

    Args:
        layout: from `graft_layout`.
        decoder_kind: one of `DECODERS`.
    """

    layout: CanvasLayout
    decoder_kind: str

    def setup(self):
        """Names each encoder after its region, its decoder REGION_decoder."""
        for name in self._new_regions:
            if name in DATA_FIELDS:
                encoder = VectorCells
            elif name == FUTURE and self.decoder_kind == "tokens_diffused":
                encoder = NoisedCells
            else:
                encoder = QueryCells
            setattr(self, name, encoder(self.layout.d_model))
            if name in PREDICTED:
                setattr(self, f"{name}_decoder", TokensDecoder(PREDICTED[name][1]))
        chunk = FRAMES_PER_LATENT * (self.layout.T - self.layout.t_current)
        if self.decoder_kind == "cross_attention":
            self.decoder = CrossAttentionDecoder(ACTION_DIM, chunk)
        elif self.decoder_kind in CELL_DECODERS:
            self.decoder = TokensDecoder(ACTION_DIM)
        else:
            heads = {"pooled": PooledDecoder, "per_frame": PerFrameDecoder}
            self.decoder = heads[self.decoder_kind](ACTION_DIM)

    def cells(
        self,
        data: Mapping[str, Float[Array, "B _ _"]],
        action_timesteps: Int[Array, " B"] | None,
        *,
        batch: int,
    ) -> list[Float[Array, "B _ D"]]:
        """The new cells, region by region in layout order.

        Args:
            data: region -> vectors, for each region that holds data; with `tokens_diffused` the
                noised actions as well.
            action_timesteps: noise level of the actions, with `tokens_diffused`.
            batch: batch size B.

        Raises:
            ValueError: data is missing, or there is data for a region that has none; noise levels
                without noised actions, or noised actions without them.
        """
        self._check(data, action_timesteps)
        cells = []
        for name in self._new_regions:
            encoder, positions = getattr(self, name), cell_positions(self.layout, name)
            if isinstance(encoder, NoisedCells):
                cells.append(encoder(data[name], positions, action_timesteps))
            elif isinstance(encoder, VectorCells):
                cells.append(encoder(data[name], positions))
            else:
                cells.append(encoder(batch, positions))
        return cells

    def decode(
        self,
        velocity: Float[Array, "B F C H W"],
        extra: Float[Array, "B N D"],
        activations: Float[Array, "taps B M D"],
    ) -> dict[str, Array]:
        """Actions and whatever else is predicted, normalised units.

        Args:
            velocity: the backbone's output.
            extra: the new cells after the last block.
            activations: video cells after each block that the decoder reads.

        Returns:
            "actions" (B, P, 7), or (B, 1, 7) from `pooled`, where `tokens_diffused` gives their
            velocity; "proprio" (B, F - t_current, 7) and "reward" (B, F - t_current, 1) where they
            have regions.
        """
        names = self._new_regions
        ends = np.cumsum([self.layout.region_numel(name) for name in names]).tolist()
        starts = [0, *ends][: len(names)]
        cells = {n: extra[:, a:b] for n, a, b in zip(names, starts, ends, strict=True)}
        if self.decoder_kind in CELL_DECODERS:
            actions = self.decoder(cells[FUTURE])
        elif self.decoder_kind == "cross_attention":
            actions = self.decoder(activations)
        elif self.decoder_kind == "per_frame":
            actions = self.decoder(velocity[:, self.layout.t_current :])
        else:
            actions = self.decoder(velocity)
        outputs = {"actions": actions}
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
        if (action_timesteps is not None) != (self.decoder_kind == "tokens_diffused"):
            found = "without" if action_timesteps is None else "with"
            raise ValueError(
                f"decoder.kind = {self.decoder_kind!r} {found} action_timesteps: expected them "
                "with tokens_diffused, and with no other decoder"
            )
