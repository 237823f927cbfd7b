"""What a graft adds to a backbone and which of the backbone's parameters train with it."""

from __future__ import annotations

import dataclasses

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.cogvideox.graft_canvas import FUTURE, camera_regions
from roam_jax.contracts import ACTION_DIM, PROPRIO_DIM, REWARD_DIM
from roam_jax.model.geometry import GEOMETRIES
from roam_jax.model.loop_options import LoopOptions
from roam_jax.spelling import check_choice

# From the smallest to the largest; docs/graft.md has their parameter counts.
DECODERS = ("pooled", "per_frame", "tokens", "tokens_diffused", "cross_attention")
# Decoders that read the future-action cells.
CELL_DECODERS = ("tokens", "tokens_diffused")

# Regions of vectors, other than actions, that are predicted: name of the output, and which size of
# `GraftConfig` it has.
PREDICTED = {
    "future_proprio": ("proprio", "proprio_dim"),
    "future_reward": ("reward", "reward_dim"),
}

# What a graft adds to a backbone trains under every policy.
_ADDED = (r"^blocks/(loop|attn1/(edges|geometry))/", r"^graft/")
# Which parameters each policy trains beside that.
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
    check_choice("freeze", policy, FREEZE_POLICIES)
    return (*_ADDED, *FREEZE_POLICIES[policy])


@dataclasses.dataclass(frozen=True)
class GraftConfig(LoopOptions):
    """Loops and decoder of a graft, and the sizes of what is decoded.

    Args:
        rounds, ...: of the loops, as `LoopOptions` has them; each block runs its own rounds.
        decoder: one of `DECODERS`.
        decoder_blocks: blocks whose activations the decoder `cross_attention` reads; negative
            numbers count from the last.
        geometry: how coordinates enter queries and keys, one of `geometry.GEOMETRIES`.
        action_dim, proprio_dim: dimensions A of an action and J of a robot state.

    Raises:
        ValueError: a value is out of range, or the whole stack is to be looped.
    """

    decoder: str = "tokens"
    decoder_blocks: tuple = (-1,)  # whole numbers; what a config holds is checked in `taps`
    geometry: str = "none"
    action_dim: int = ACTION_DIM
    proprio_dim: int = PROPRIO_DIM

    def __post_init__(self):
        super().__post_init__()
        if self.over != "block":
            raise ValueError(
                f"loop.over = {self.over!r} with train.task = 'graft': a graft loops every block "
                "of its backbone on its own; expected 'block'"
            )
        check_choice("decoder.kind", self.decoder, DECODERS)
        check_choice("canvas.geometry", self.geometry, GEOMETRIES)
        if self.decoder != "cross_attention" and self.decoder_blocks != (-1,):
            raise ValueError(
                f"decoder.blocks = {self.decoder_blocks} with decoder.kind = {self.decoder!r}, "
                "which reads no block's activations; expected (-1,), or cross_attention"
            )

    @property
    def reward_dim(self) -> int:
        """Dimensions of a reward."""
        return REWARD_DIM

    def outputs(self, layout: CanvasLayout) -> dict[str, tuple[str, ...]]:
        """Output of the grafted model -> regions whose cells it is read from."""
        actions = FUTURE if self.decoder in CELL_DECODERS else "visual"
        found = {"velocity": ("visual",), "actions": (actions,)}
        for name in PREDICTED:
            if name in layout.regions:
                found[PREDICTED[name][0]] = (name,)
        cameras = [regions[1] for regions in camera_regions(layout).values() if regions[1:]]
        return found | ({"camera_velocity": tuple(cameras)} if cameras else {})

    def taps(self, depth: int) -> tuple[int, ...]:
        """Blocks 0..depth - 1 whose activations the decoder reads; none for the other decoders.

        Raises:
            ValueError: a block that does not exist, none, or one twice.
        """
        if self.decoder != "cross_attention":
            return ()
        if not all(type(block) is int for block in self.decoder_blocks):
            raise ValueError(f"decoder.blocks = {self.decoder_blocks}: expected whole numbers")
        chosen = tuple(block + depth if block < 0 else block for block in self.decoder_blocks)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(
                f"decoder.blocks = {self.decoder_blocks}: expected at least one block, each once"
            )
        if not all(0 <= block < depth for block in chosen):
            raise ValueError(
                f"decoder.blocks = {self.decoder_blocks}: expected {-depth}..{depth - 1}, the "
                f"backbone has {depth} blocks"
            )
        return chosen
