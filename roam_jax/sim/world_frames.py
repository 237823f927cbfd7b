"""Frames of worlds by ray casting, from a camera over the table or beside the walker."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from roam_jax.sim.fragments import RGB
from roam_jax.sim.render import RayCamera
from roam_jax.sim.tabletop import Camera, Point, Table
from roam_jax.sim.world import World


@dataclasses.dataclass(frozen=True)
class View:
    """A camera and a lamp; with `follows` both go along with the torso."""

    camera: Camera
    light: Point
    ground: str
    table: Table
    background_rgb: RGB = (0.42, 0.46, 0.52)
    follows: bool = False


TABLE_VIEW = View(
    camera=Camera(position=(-0.16, 0.0, 0.64), target=(0.28, -0.03, 0.02), fovy=48.0),
    light=(0.1, 0.45, 1.3),
    ground="table",
    table=Table(),
)
WALK_VIEW = View(
    camera=Camera(position=(0.25, -1.5, 0.55), target=(0.05, 0.0, 0.26), fovy=42.0),
    light=(-0.4, -0.9, 2.2),
    ground="floor",
    table=Table(period=0.25),
    follows=True,
)


class WorldRenderer(RayCamera):
    """Draws episodes of one world at `size` x `size` pixels.

    Args:
        world: any.
        size: pixels of a side.
        supersample: rays a pixel side where neighbouring pixels differ; 1 = never.
    """

    def __init__(self, world: World, size: int, *, supersample: int = 2):
        self._view = view = WALK_VIEW if world.environment == "walk" else TABLE_VIEW
        right, up = view.camera.axes()
        super().__init__(
            size=size,
            supersample=supersample,
            origin=np.array(view.camera.position),
            rotation=np.stack([right, up, np.cross(right, up)], axis=1),
            fovy=view.camera.fovy,
            table=view.table,
            light=view.light,
            background_rgb=view.background_rgb,
        )
        self._data = mujoco.MjData(world.model)

    def render(
        self, model: mujoco.MjModel, qpos: Float[np.ndarray, " Q"]
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The frame of an episode's model at these generalised positions."""
        self._show(model, self._view.ground)
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(model, self._data)
        if self._view.follows:
            along = np.array([qpos[0], 0.0, 0.0])
            self._origin = along + self._view.camera.position
            self._lamp = along + self._view.light
        return self.draw(self._data)
