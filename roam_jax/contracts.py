"""What crosses the borders between packages: time alignment, batches, tasks.

The one place where data, model and trainer agree. Nothing here imports JAX at run time, so a data
worker can use it without starting an accelerator runtime.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

if TYPE_CHECKING:
    import jax

ACTION_DIM = 7
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
ACTION_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1 = open")
# Robot state, one row a camera step, in stored order.
PROPRIO_DIM = 7
REWARD_DIM = 1
# Its place in actions and states alike.
GRIPPER = 6
# Environment frames that share one latent frame, after the first (the VAE's temporal factor).
FRAMES_PER_LATENT = 4

DIMENSION_KINDS = ("linear", "angle", "change", "gripper")


@dataclasses.dataclass(frozen=True)
class VectorSpec:
    """What the numbers of a robot's state or action mean, one entry a dimension.

    Args:
        names: such as "x"; no two alike.
        units: such as "m".
        kinds: linear; angle, in rad, the same after a whole turn; change, of either of them from
            one frame to the next; or gripper, 1 open to 0 closed, which is never scaled.

    Raises:
        ValueError: no dimension, a name twice, an unknown kind, or lists of different lengths.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self):
        lengths = {len(self.names), len(self.units), len(self.kinds)}
        if not self.names or len(lengths) > 1 or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"dimensions {self.names} with units {self.units} and kinds {self.kinds}: expected "
                "at least one, each name once, and a unit and a kind for each"
            )

        unknown = set(self.kinds) - set(DIMENSION_KINDS)
        if unknown:
            raise ValueError(
                f"dimensions {self.names}: kinds {sorted(unknown)}, expected one of "
                f"{', '.join(DIMENSION_KINDS)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def of_kind(self, *kinds: str) -> list[int]:
        """Places of the dimensions of these kinds, in order."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]

    @property
    def scaled(self) -> list[int]:
        """Places of all but the grippers, in order."""
        return [i for i, kind in enumerate(self.kinds) if kind != "gripper"]


# States and actions of BridgeData V2 and of the simulated tabletop.
POSE_AND_GRIPPER = VectorSpec(
    ACTION_NAMES, ACTION_UNITS, ("linear",) * 3 + ("angle",) * 3 + ("gripper",)
)
POSE_CHANGE_AND_GRIPPER = VectorSpec(ACTION_NAMES, ACTION_UNITS, ("change",) * 6 + ("gripper",))


@dataclasses.dataclass(frozen=True)
class TimeSpec:
    """How one window of a robot episode lies on the canvas's time axis.

    Latent frame 0 is environment frame 0; latent frame k >= 1 covers environment frames 4k-3..4k.
    Action i is the transition from frame i to frame i+1, so latent frame k >= 1 owns the actions
    4k-4..4k-1 and latent frame 0 owns none. Its robot state is that of environment frame 4k, its
    reward the sum over the frames that it covers. Latent frames before `t_current` are observed.

    Args:
        frames: environment frames of a window, 4n + 1.
        t_current: first latent frame that is predicted, 1 <= t_current < latents.

    Raises:
        ValueError: `frames` is not 4n + 1 with n >= 1, or `t_current` is out of range.
    """

    frames: int
    t_current: int

    def __post_init__(self):
        if self.frames < 5 or (self.frames - 1) % FRAMES_PER_LATENT:
            below = max(5, (self.frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1)
            raise ValueError(
                f"data.frames = {self.frames}: a window has 4n + 1 frames, n >= 1 "
                f"(nearest: {below} or {below + FRAMES_PER_LATENT})"
            )
        if not 1 <= self.t_current < self.latents:
            raise ValueError(
                f"canvas.t_current = {self.t_current}: expected 1 <= t_current < {self.latents}, "
                f"the latent frames of {self.frames} environment frames"
            )

    @property
    def latents(self) -> int:
        """Latent frames F of the window."""
        return (self.frames - 1) // FRAMES_PER_LATENT + 1

    @property
    def observed_frames(self) -> int:
        """Environment frames 0..4(t_current - 1) that the model may see."""
        return FRAMES_PER_LATENT * (self.t_current - 1) + 1

    @property
    def actions(self) -> int:
        """Transitions of the window."""
        return self.frames - 1

    @property
    def past_actions(self) -> int:
        """Actions between observed frames; 0 with `t_current` = 1."""
        return FRAMES_PER_LATENT * (self.t_current - 1)

    @property
    def chunk(self) -> int:
        """Future actions P that are predicted; the first of them is the action at `t_current`."""
        return self.actions - self.past_actions


class Batch(TypedDict, total=False):
    """One batch of windows. Videos come either as frames or as latents, never both.

    A and J are the dimensions of actions and robot states, V the cameras beside the first. Fields
    of cameras, goals and masks are there where the config asks for them.

    | field           | shape              | dtype   | unit and range                              |
    |-----------------|--------------------|---------|---------------------------------------------|
    | frames          | (B, T, H, W, 3)    | uint8   | RGB, 0..255, of the first camera            |
    | camera_frames   | (B, V, T, H, W, 3) | uint8   | the same of the other cameras               |
    | goal_frame      | (B, 1, H, W, 3)    | uint8   | first camera, a later step of the episode   |
    | observed_latents| (B, t_current, C, H, W) | float32 | scaled posterior mean of the observed  |
    |                 |                    |         | frames alone (no later frame is encoded)    |
    | target_latents  | (B, F, C, H, W)    | float32 | scaled posterior mean of the whole window   |
    | observed_camera_latents | (B, V, t_current, C, H, W) | float32 | as `observed_latents`       |
    | target_camera_latents | (B, V, F, C, H, W) | float32 | as `target_latents`                   |
    | goal_latent     | (B, 1, C, H, W)    | float32 | scaled posterior mean of the goal frame     |
    | *_logvar        | as its latents     | float32 | log-variance of the scaled posterior whose  |
    |                 |                    |         | mean is the field named before `_logvar`    |
    | posterior_key   | ()                 | key     | within a loss: target latents are samples   |
    |                 |                    |         | of the posterior, drawn by it               |
    | text            | (B, S, D)          | float32 | text embedding                              |
    | past_actions    | (B, 4 t_current - 4, A) | float32 | in [-1, 1] by q01/q99, grippers 0,     |
    |                 |                    |         | 0.5 (undecided) or 1 by a forward scan      |
    | action_chunk    | (B, P, A)          | float32 | in [-1, 1] by q01/q99, grippers 0 or 1      |
    |                 |                    |         | by the backward scan; targets only          |
    | action_mask     | (B, A)             | float32 | 1 where the robot has the dimension, else 0 |
    | observed_proprio| (B, t_current, J)  | float32 | robot state at frames 0, 4, ..: in [-1, 1]  |
    |                 |                    |         | by q01/q99, gripper opening 0..1            |
    | future_proprio  | (B, F - t_current, J) | float32 | the same at later latent frames;         |
    |                 |                    |         | targets only                                |
    | proprio_mask    | (B, J)             | float32 | 1 where the robot has the dimension, else 0 |
    | observed_reward | (B, t_current, 1)  | float32 | stored reward of frame 0 at latent frame 0, |
    |                 |                    |         | its sum over frames 4k-3..4k at k >= 1. As  |
    |                 |                    |         | stored: where a step's reward follows from  |
    |                 |                    |         | its own action (strict RLDS), the last one  |
    |                 |                    |         | tells of the action at t_current            |
    | future_reward   | (B, F - t_current, 1) | float32 | the same at later latent frames;         |
    |                 |                    |         | targets only                                |
    | dataset         | (B,)               | int32   | member of the mixture, 0 where there is one |
    | episode         | (B,)               | int32   | index of the episode in its split           |
    | start           | (B,)               | int32   | step of the episode that is frame 0         |
    | BODY/STREAM     | (B, cells, numbers) | float32 | of a cloned policy, of each body: what its |
    |                 |                    |         | world shows, in SI units; "pixels" uint8    |
    | BODY/action     | (B, P, J)          | float32 | the expert's next actions, in [-1, 1]       |
    | BODY/mask       | (B, P)             | bool    | whether the episode has them                |
    | scene_seed      | (B,)               | uint32  | of examples that are made within the loss:  |
    |                 |                    |         | the seed of their stream                    |
    | scene_index     | (B,)               | uint32  | and their number in it                      |
    | step            | ()                 | int32   | within a training loss: finished steps      |
    | part            |                    | Part    | within a training loss, where a batch runs  |
    |                 |                    |         | in parts: which rows these are              |
    """

    frames: np.ndarray
    camera_frames: np.ndarray
    goal_frame: np.ndarray
    observed_latents: np.ndarray
    target_latents: np.ndarray
    observed_camera_latents: np.ndarray
    target_camera_latents: np.ndarray
    goal_latent: np.ndarray
    target_latents_logvar: np.ndarray
    target_camera_latents_logvar: np.ndarray
    posterior_key: jax.Array
    text: np.ndarray
    past_actions: np.ndarray
    action_chunk: np.ndarray
    action_mask: np.ndarray
    observed_proprio: np.ndarray
    future_proprio: np.ndarray
    proprio_mask: np.ndarray
    observed_reward: np.ndarray
    future_reward: np.ndarray
    dataset: np.ndarray
    episode: np.ndarray
    start: np.ndarray
    scene_seed: np.ndarray
    scene_index: np.ndarray
    step: jax.Array
    part: Any


# Fields of a batch that hold pixels; encoded windows have latents in their place.
VIDEO_FIELDS = ("frames", "camera_frames", "goal_frame")


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array; `jax.eval_shape` accepts it as an argument."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


Params = Any  # a nested dict of arrays; a parameter's name is its "/"-joined path
LossFn = Callable[["Params", Batch, "jax.Array", int], tuple["jax.Array", dict[str, "jax.Array"]]]


@dataclasses.dataclass(frozen=True)
class Task:
    """All that the trainer knows of a model.

    Args:
        init: `init(rng) -> params`, traceable. The whole tree; what `pretrained` overrides is only
            ever evaluated for its shapes.
        loss: `loss(params, batch, rng, rounds) -> (scalar, metrics)`; `rounds` is static; metrics
            are float32 scalars. A loss that is no mean over rows, or draws numbers for them, goes
            by the batch's `microbatch.Part`, so that parts of a batch add up to it.
        trainable: ordered regular expressions, searched in parameter names such as
            "blocks/loop/gate". What matches gets gradients, optimizer state and float32 storage;
            all else is frozen and keeps the dtype that it was loaded with.
        batch_spec: name -> `ArraySpec` of a global batch.
        pretrained: returns the subtree of `init`'s params that comes from files, as host arrays
            (often memory-mapped); None where everything is initialised.
        no_decay: regular expressions of trainable parameters without weight decay.
        frozen_dtype: what frozen parameters are stored as on the devices; None keeps their file's.
    """

    init: Callable[[jax.Array], Params]
    loss: LossFn
    trainable: tuple[str, ...]
    batch_spec: Mapping[str, ArraySpec]
    pretrained: Callable[[], Params] | None = None
    no_decay: tuple[str, ...] = ()
    frozen_dtype: Any = None


def cache_dir() -> pathlib.Path:
    """Folder for what is made once: `$ROAM_CACHE`, or ~/.cache/roam_jax."""
    return pathlib.Path(os.environ.get("ROAM_CACHE", "~/.cache/roam_jax")).expanduser()
