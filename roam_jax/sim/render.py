"""Frames by ray casting: `mujoco.mj_multiRay` and a shading rule, no display and no GL library.

One call casts a ray through every sample of the image and returns geom, distance and normal; a
second, from the lamp to the points that were hit, says which of them lie in shadow (Appel, 1968).
"""

from __future__ import annotations

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from roam_jax.sim.fragments import HIDDEN_GROUP, RGB
from roam_jax.sim.tabletop import CAMERA, Point, Scene, Table

AMBIENT = 0.45
DIFFUSE = 0.62
# A point counts as lit when the lamp's ray ends within this of it (metres).
SHADOW_BIAS = 2e-3
FAR = 10.0
# Neighbouring pixels that differ by more (of 1) are drawn again with more rays.
EDGE_CONTRAST = 0.2
# Metres over which a tile of the table fades into the next; about a pixel of the default camera.
TILE_BLEND = 0.008


class RayCamera:
    """Draws what a camera sees of a model on a textured table or floor.

    Args:
        size: pixels of a side.
        supersample: rays a pixel side where neighbouring pixels differ (Whitted, 1980); 1 = never.
        origin: place of the camera in m.
        rotation: its right, up and backward directions as columns.
        fovy: vertical field of view in degrees.
        table: texture of the geom `ground`.
        light: a point lamp, in m.
        background_rgb: where nothing is hit, in [0, 1].
    """

    def __init__(
        self,
        *,
        size: int,
        supersample: int,
        origin: Float[np.ndarray, " 3"],
        rotation: Float[np.ndarray, "3 3"],
        fovy: float,
        table: Table,
        light: Point,
        background_rgb: RGB,
    ):
        self._size, self._supersample, self._table = size, supersample, table
        self._lamp, self._background = np.array(light), background_rgb
        self._groups = np.ones(mujoco.mjNGROUP, np.uint8)
        self._groups[HIDDEN_GROUP] = 0
        # The camera never turns, so its rays are made once: (pixels, 3), (pixels, samples, 3).
        self._origin = np.array(origin, dtype=np.float64)
        self._rays = pixel_rays(size, fovy).reshape(-1, 3) @ rotation.T
        fine = pixel_rays(size * supersample, fovy) @ rotation.T
        fine = fine.reshape(size, supersample, size, supersample, 3).swapaxes(1, 2)
        self._fine_rays = fine.reshape(size * size, supersample**2, 3)

    def _show(self, model: mujoco.MjModel, ground: str) -> None:
        """Draws this model from now on."""
        self._model = model
        self._ground = model.geom(ground).id
        self._rgb = model.geom_rgba[:, :3].astype(np.float32)

    def draw(self, data: mujoco.MjData) -> UInt8[np.ndarray, "H W 3"]:
        """The frame at the simulation's present state (after `mj_kinematics` or `mj_forward`)."""
        colour = self._shade(data, self._rays)
        if self._supersample > 1:
            edges = np.flatnonzero(self._edges(colour))
            samples = self._shade(data, self._fine_rays[edges].reshape(-1, 3))
            colour[edges] = samples.reshape(len(edges), self._supersample**2, 3).mean(axis=1)
        frame = colour.reshape(self._size, self._size, 3)
        return (np.clip(frame, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)

    def depth(self, data: mujoco.MjData) -> Float[np.ndarray, "H W"]:
        """Distance along each pixel's central ray in metres, infinite where nothing is hit."""
        geom, distance, _ = self._cast(data, self._origin, self._rays)
        return np.where(geom < 0, np.inf, distance).reshape(self._size, self._size)

    def _shade(
        self, data: mujoco.MjData, rays: Float[np.ndarray, "N 3"]
    ) -> Float[np.ndarray, "N 3"]:
        """Colour in [0, 1] that each ray brings back."""
        geom, distance, normal = self._cast(data, self._origin, rays)
        # Rays that hit nothing go through the same arithmetic and are overwritten at the end.
        points = self._origin + distance[:, None] * rays
        colour = self._rgb[geom]
        on_table = geom == self._ground
        colour[on_table] = texture(self._table, points[on_table, :2])
        colour *= self._light(data, points, normal)[:, None]
        colour[geom < 0] = self._background
        return colour

    def _edges(self, colour: Float[np.ndarray, "N 3"]) -> Bool[np.ndarray, " N"]:
        """Pixels that differ visibly from the one above, below, left or right."""
        frame = colour.reshape(self._size, self._size, 3)
        edges = np.zeros((self._size, self._size), bool)
        down = np.abs(np.diff(frame, axis=0)).max(axis=-1) > EDGE_CONTRAST
        right = np.abs(np.diff(frame, axis=1)).max(axis=-1) > EDGE_CONTRAST
        edges[1:] |= down
        edges[:-1] |= down
        edges[:, 1:] |= right
        edges[:, :-1] |= right
        return edges.reshape(-1)

    def _cast(
        self, data: mujoco.MjData, origin: Float[np.ndarray, " 3"], rays: Float[np.ndarray, "N 3"]
    ) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, "N 3"]]:
        geom = np.empty(len(rays), np.int32)
        distance = np.empty(len(rays))
        normal = np.empty((len(rays), 3))
        mujoco.mj_multiRay(
            self._model, data, origin, rays.ravel(), self._groups, True, -1,
            geom, distance, normal.reshape(-1), len(rays), FAR,
        )  # fmt: skip
        return geom, distance, normal

    def _light(
        self,
        data: mujoco.MjData,
        points: Float[np.ndarray, "N 3"],
        normal: Float[np.ndarray, "N 3"],
    ) -> Float[np.ndarray, " N"]:
        """Lambert's law from a point lamp, with hard shadows."""
        rays = points - self._lamp
        reach = np.sqrt(np.einsum("nc,nc->n", rays, rays))
        rays /= reach[:, None]
        facing = np.maximum(-np.einsum("nc,nc->n", rays, normal), 0.0)
        _, first, _ = self._cast(data, self._lamp, rays)
        lit = first > reach - SHADOW_BIAS
        return (AMBIENT + DIFFUSE * facing * lit).astype(np.float32)


class Renderer(RayCamera):
    """Draws one scene's camera at `size` x `size` pixels.

    Args:
        model: compiled from `to_mjcf(scene)`.
        scene: gives the table's texture, the lamp and the background.
        size: pixels of a side.
        supersample: rays a pixel side where neighbouring pixels differ; 1 = never.
    """

    def __init__(
        self, model: mujoco.MjModel, scene: Scene, *, size: int = 64, supersample: int = 2
    ):
        camera = model.camera(CAMERA).id
        super().__init__(
            size=size,
            supersample=supersample,
            origin=model.cam_pos[camera],
            rotation=model.cam_mat0[camera].reshape(3, 3),
            fovy=float(model.cam_fovy[camera]),
            table=scene.table,
            light=scene.light,
            background_rgb=scene.background_rgb,
        )
        self._show(model, "table")

    def render(self, data: mujoco.MjData) -> UInt8[np.ndarray, "H W 3"]:
        """The frame at the simulation's present state (after `mj_kinematics` or `mj_forward`)."""
        return self.draw(data)


def pixel_rays(size: int, fovy: float) -> Float[np.ndarray, "H W 3"]:
    """Unit vectors through the centres of size x size pixels, in the camera's frame.

    The camera looks along -z with x to the right and y up; `fovy` is in degrees.
    """
    half = np.tan(np.radians(fovy) / 2)
    offsets = ((np.arange(size) + 0.5) / size * 2 - 1) * half
    x, y = np.meshgrid(offsets, -offsets)
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def texture(table: Table, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 3"]:
    """Colour of the table top at points (x, y) in metres."""
    phase = np.sin(points.astype(np.float32) * np.float32(np.pi / table.period))
    if table.texture == "plain":
        wave = np.ones(len(points), np.float32)
    elif table.texture == "stripes":
        wave = phase[:, 1]
    else:
        wave = phase[:, 0] * phase[:, 1]
    # A steep ramp through 0 in place of the sign: tiles meet over TILE_BLEND, without jagged edges.
    steepness = 2 * table.period / (np.pi * TILE_BLEND)
    light = 0.5 + 0.5 * np.clip(wave * steepness, -1.0, 1.0)
    dark, bright = np.array([table.dark_rgb, table.light_rgb], np.float32)
    return dark + light[:, None] * (bright - dark)
