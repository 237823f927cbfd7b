"""Ray-cast frames against closed forms: depth, silhouette, light, shadow, texture, smoothing."""

import dataclasses

import mujoco
import numpy as np
import pytest

from roam_jax.sim.render import AMBIENT, DIFFUSE, Renderer, pixel_rays, texture
from roam_jax.sim.tabletop import Camera, Prop, Scene, Table, Tabletop

WHITE = Table(texture="plain", light_rgb=(1.0, 1.0, 1.0), dark_rgb=(1.0, 1.0, 1.0))
BALL = Prop("ball", "red", (0.8, 0.1, 0.1), 0.035, (0.28, 0.02))
SCENE = Scene(props=(BALL,), table=WHITE)


def alone(scene: Scene) -> Tabletop:
    """The scene with its gantry lifted out of view and out of the light."""
    table = Tabletop(scene)
    table.data.joint("x").qpos = -50.0
    mujoco.mj_kinematics(table.model, table.data)
    return table


def view_rays(camera: Camera, size: int) -> np.ndarray:
    """Unit rays of all pixels in the world, by the pinhole's definition."""
    forward = np.subtract(camera.target, camera.position)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    half = np.tan(np.deg2rad(camera.fovy / 2))
    pixel = (np.arange(size) - (size - 1) / 2) * 2 * half / size
    rays = forward + pixel[None, :, None] * right - pixel[:, None, None] * up
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def test_depth_equals_ray_sphere_and_ray_plane_intersections():
    table = alone(SCENE)
    depth = Renderer(table.model, SCENE, size=48).depth(table.data)
    rays, origin = view_rays(SCENE.camera, 48), np.array(SCENE.camera.position)
    plane = -origin[2] / rays[..., 2]
    x, y = np.moveaxis(origin + plane[..., None] * rays, -1, 0)[:2]
    on_table = (plane > 0) & (np.abs(x - 0.35) <= 0.5) & (np.abs(y) <= 0.45)
    plane = np.where(on_table, plane, np.inf)
    centre = np.array([*BALL.position, BALL.size]) - origin
    along = rays @ centre
    inside = BALL.size**2 - (centre @ centre - along**2)
    sphere = np.where(inside > 0, along - np.sqrt(np.maximum(inside, 0)), np.inf)
    assert 20 < (inside > 0).sum() < 400 and np.isinf(plane).any()
    np.testing.assert_allclose(depth, np.minimum(plane, sphere), rtol=1e-6)


def test_central_pixel_looks_at_the_target():
    camera = Camera(target=(0.35, -0.10, 0.0))  # past the ball
    scene = dataclasses.replace(SCENE, camera=camera)
    table = alone(scene)
    depth = Renderer(table.model, scene, size=33).depth(table.data)
    expected = np.linalg.norm(np.subtract(camera.target, camera.position))
    np.testing.assert_allclose(depth[16, 16], expected, rtol=1e-9)


def test_silhouette_of_a_ball_has_the_area_of_a_cone_section():
    # Looked at head on, a sphere fills the cone of half angle asin(r / d).
    camera = Camera(position=(0.28, -0.6, 0.6), target=(*BALL.position, BALL.size), fovy=20.0)
    scene = dataclasses.replace(SCENE, camera=camera, background_rgb=(0.0, 0.0, 0.0))
    table = alone(scene)
    frame = Renderer(table.model, scene, size=128).render(table.data).astype(int)
    red = frame[..., 0] > 2 * frame[..., 1]
    distance = np.linalg.norm(np.subtract(camera.target, camera.position))
    radius = np.tan(np.arcsin(BALL.size / distance)) / np.tan(np.deg2rad(10)) * 64
    np.testing.assert_allclose(red.sum(), np.pi * radius**2, rtol=0.02)
    rows, columns = np.nonzero(red)
    np.testing.assert_allclose([rows.mean(), columns.mean()], 63.5, atol=0.3)


@pytest.mark.parametrize("lit", [0, 1])
def test_light_follows_lambert_and_shadows_fall_behind_props(lit):
    lamp, centre = np.array([0.28, 0.5, 0.5]), np.array([*BALL.position, BALL.size])
    shadowed = lamp + (centre - lamp) * lamp[2] / (lamp[2] - centre[2])
    point = np.array([0.25, -0.15, 0.0]) if lit else shadowed
    # Seen from the side away from the lamp, the ball hides neither point.
    position = point + np.array([0.02, -0.3, 0.5])
    camera = Camera(position=tuple(position.tolist()), target=tuple(point.tolist()))
    scene = dataclasses.replace(SCENE, camera=camera, light=tuple(lamp.tolist()))
    table = alone(scene)
    frame = Renderer(table.model, scene, size=65, supersample=1).render(table.data)
    cosine = (lamp[2] - point[2]) / np.linalg.norm(lamp - point)
    np.testing.assert_allclose(frame[32, 32] / 255, AMBIENT + lit * DIFFUSE * cosine, atol=1 / 255)


def test_a_miss_shows_the_background():
    camera = Camera(position=(0.3, 0.0, 0.5), target=(3.0, 0.0, 1.0))
    scene = dataclasses.replace(SCENE, camera=camera, background_rgb=(0.2, 0.4, 0.6))
    table = alone(scene)
    frame = Renderer(table.model, scene, size=8).render(table.data)
    assert (frame == [51, 102, 153]).all()


def test_the_contact_ball_is_not_drawn():
    table = Tabletop(SCENE)
    before = Renderer(table.model, SCENE).render(table.data)
    tip = table.model.geom("tip")
    tip.rgba, tip.size = (1, 0, 1, 1), (0.1, 0, 0)
    np.testing.assert_array_equal(Renderer(table.model, SCENE).render(table.data), before)


def test_supersampling_mixes_colours_at_edges_alone():
    table = alone(SCENE)
    rough = Renderer(table.model, SCENE, supersample=1).render(table.data).astype(int)
    smooth = Renderer(table.model, SCENE, supersample=4).render(table.data).astype(int)
    steps = np.abs(np.diff(rough, axis=0)).max(axis=(1, 2)), np.abs(np.diff(rough, axis=1))
    assert max(steps[0].max(), steps[1].max()) > 100
    changed = np.abs(rough - smooth).max(axis=-1) > 0
    assert 0 < changed.mean() < 0.25
    # The exact average over each pixel, from a frame 8 times as fine.
    fine = Renderer(table.model, SCENE, size=512, supersample=1).render(table.data)
    exact = fine.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert np.square(smooth - exact).mean() < 0.2 * np.square(rough - exact).mean()


@pytest.mark.parametrize("name, expected", [("checker", [1, 0, 0, 1]), ("stripes", [1, 0, 1, 0])])
def test_tiles_alternate(name, expected):
    table = Table(texture=name, light_rgb=(1.0, 0.8, 0.6), dark_rgb=(0.2, 0.1, 0.0), period=0.1)
    tiles = np.array([[0.05, 0.05], [0.05, 0.15], [0.15, 0.05], [0.15, 0.15]])
    colours = np.where(np.array(expected)[:, None] == 1, table.light_rgb, table.dark_rgb)
    np.testing.assert_allclose(texture(table, tiles), colours, atol=1e-6)
    between = np.array([[0.05, 0.1]])
    np.testing.assert_allclose(texture(table, between), [[0.6, 0.45, 0.3]], atol=1e-5)


def test_plain_table_has_one_colour():
    points = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    assert (texture(WHITE, points) == 1).all()


def test_pixel_rays_are_unit_and_span_the_field_of_view():
    rays = pixel_rays(4, 90.0)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1)
    np.testing.assert_allclose(rays[0, 0] / -rays[0, 0, 2], [-0.75, 0.75, -1])
