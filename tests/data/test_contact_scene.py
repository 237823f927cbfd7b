"""The contact scene, against closed forms, a simulation in numpy, and MuJoCo's contacts."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from roam_jax.data import contact_scene as scenes
from roam_jax.data import contact_scene_physics as physics
from roam_jax.data.contact_scene import ContactScene
from roam_jax.data.contact_scene_physics import RADIUS, SUBSTEPS
from roam_jax.data.scene_drawing import HAND_COLOUR

COUNT = 2000


@pytest.fixture(scope="module")
def runs():
    """Examples of three discs and what was simulated for them."""
    scene = ContactScene(objects=3, observed_frames=2)

    def of(seed, index):
        start = scene.start(seed, index)
        motion = physics.simulate(start.places, start.speeds, scenes.targets(start.commands))
        return scene._example(seed, index), start, motion

    numbers = np.arange(COUNT, dtype=np.uint32)
    return jax.device_get(jax.jit(jax.vmap(of))(np.zeros(COUNT, np.uint32), numbers))


def simulated(places, speeds, targets):
    """The same in float64 with a loop over pairs: (S, n, 2) places, (S,) touching."""
    places, speeds = places.astype(np.float64), speeds.astype(np.float64)
    low, high, dt = RADIUS, 1 - RADIUS, 1 / SUBSTEPS
    path, touching = [], []
    for target in targets:
        pull = physics.STIFFNESS * (target - places[0]) - physics.DAMPING * speeds[0]
        speeds = speeds + dt * np.vstack([pull, -physics.FRICTION * speeds[1:]])
        places = places + dt * speeds
        for d, i in np.ndindex(2, len(places)):
            if places[i, d] < low or places[i, d] > high:
                wall = low if places[i, d] < low else high
                places[i, d] = 2 * wall - places[i, d]
                speeds[i, d] *= -1
        after, touched = speeds.copy(), False
        for i in range(len(places)):
            for j in range(i):
                line = places[i] - places[j]
                if np.hypot(*line) > 2 * RADIUS:
                    continue
                touched |= j == 0
                normal = line / np.hypot(*line)
                closing = (speeds[i] - speeds[j]) @ normal
                if closing < 0:
                    after[i] -= closing * normal
                    after[j] += closing * normal
        speeds = after
        path.append(places.copy())
        touching.append(touched)
    return np.array(path), np.array(touching)


def test_a_simulation_in_numpy_agrees(runs):
    """While rounding has not grown too far: collisions amplify it."""
    example, start, motion = runs
    same = []
    for i in range(40):
        path, touching = simulated(
            start.places[i],
            start.speeds[i],
            np.repeat(start.commands[i], SUBSTEPS // scenes.COMMANDS_A_FRAME, axis=0),
        )
        np.testing.assert_allclose(motion.places[i, :16], path[:16], atol=1e-4)
        by_frame = touching.reshape(scenes.FRAMES, SUBSTEPS).any(axis=1)
        same.append(by_frame == example["contact"][i])
    assert np.mean(same) > 0.99


def test_contacts_are_those_of_mujoco(runs):
    _, _, motion = runs
    discs = "".join(
        f'<body><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/>'
        f'<geom name="g{i}" type="sphere" size="{RADIUS}" mass="1"/></body>'
        for i in range(motion.places.shape[2])
    )
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{discs}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    driven = model.geom("g0").id
    for i in range(30):
        for step in range(0, 64, 3):
            data.qpos[:] = motion.places[i, step].reshape(-1)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_collision(model, data)
            touched = any(
                driven in data.contact[c].geom and data.contact[c].dist <= 0
                for c in range(data.ncon)
            )
            assert touched == motion.touching[i, step]


def test_a_driven_disc_is_a_damped_oscillator():
    """Alone and off the walls, its state is multiplied by one matrix each substep."""
    dt, target = 1 / SUBSTEPS, np.array([0.6, 0.5])
    kick = np.array([[1, 0], [-dt * physics.STIFFNESS, 1 - dt * physics.DAMPING]])
    drift = np.array([[1, dt], [0, 1]])
    motion = physics.simulate(
        jnp.array([[0.3, 0.5]]),
        jnp.zeros((1, 2)),
        jnp.tile(jnp.asarray(target, jnp.float32), (64, 1)),
    )
    for steps in (1, 7, 64):
        offset, speed = np.linalg.matrix_power(drift @ kick, steps) @ [0.3 - 0.6, 0.0]
        np.testing.assert_allclose(motion.places[steps - 1, 0], [0.6 + offset, 0.5], atol=1e-5)
        np.testing.assert_allclose(motion.speeds[steps - 1, 0], [speed, 0], atol=1e-5)
    assert not motion.touching.any()


def test_a_free_disc_slows_down_and_comes_back_from_walls():
    """Its path, unfolded at the walls, is a geometric series."""
    keep = 1 - physics.FRICTION / SUBSTEPS
    start, speed = np.array([0.8, 0.2]), np.array([0.5, -0.3])
    motion = physics.simulate(
        jnp.array([[0.15, 0.85], start]), jnp.array([[0, 0], speed]),
        jnp.tile(jnp.array([0.15, 0.85]), (24, 1)),
    )  # fmt: skip
    size = 1 - 2 * RADIUS
    for steps in range(1, 25):
        way = speed / SUBSTEPS * sum(keep**k for k in range(1, steps + 1))
        unfolded = (start + way - RADIUS) % (2 * size)
        expected = RADIUS + np.minimum(unfolded, 2 * size - unfolded)
        np.testing.assert_allclose(motion.places[steps - 1, 1], expected, atol=1e-5)
        turned = np.where((start + way - RADIUS) // size % 2 == 0, 1, -1)
        np.testing.assert_allclose(
            motion.speeds[steps - 1, 1], turned * speed * keep**steps, atol=1e-5
        )
    assert (motion.speeds[:, 1] * speed < 0).any(axis=0).all()  # walls were met on both axes


def test_impacts_keep_momentum_and_energy():
    rng = np.random.default_rng(0)
    collide = jax.jit(lambda p, v: physics.collide(p, v, physics.touches(p)))
    met = 0
    for _ in range(30):
        angle = rng.uniform(0, 2 * np.pi)
        line = np.array([np.cos(angle), np.sin(angle)])
        places = np.array([0.5 - 0.9 * RADIUS * line, 0.5 + 0.9 * RADIUS * line])
        speeds = rng.normal(size=(2, 2))
        after = np.asarray(
            collide(jnp.asarray(places, jnp.float32), jnp.asarray(speeds, jnp.float32))
        )
        np.testing.assert_allclose(after.sum(axis=0), speeds.sum(axis=0), atol=1e-5)
        np.testing.assert_allclose((after**2).sum(), (speeds**2).sum(), rtol=1e-5)
        closing = (speeds[1] - speeds[0]) @ line < 0
        along = speeds[::-1] @ line if closing else speeds @ line
        np.testing.assert_allclose(after @ line, along, atol=1e-5)
        across = np.array([-line[1], line[0]])
        np.testing.assert_allclose(after @ across, speeds @ across, atol=1e-5)
        met += closing
    assert 5 < met < 25


def test_discs_apart_do_not_meet():
    places = jnp.array([[0.5, 0.5], [0.5 + 2.01 * RADIUS, 0.5], [0.5, 0.9]])
    speeds = jnp.array([[1.0, 0], [-1, 0], [0, -1]])
    touching = physics.touches(places)
    assert not touching.any()
    np.testing.assert_array_equal(physics.collide(places, speeds, touching), speeds)
    near = places.at[1, 0].set(0.5 + 1.99 * RADIUS)
    assert np.argwhere(physics.touches(near)).tolist() == [[0, 1], [1, 0]]


def test_streams_show_what_was_simulated(runs):
    example, start, motion = runs
    places = np.concatenate([start.places[:, None], motion.places[:, SUBSTEPS - 1 :: SUBSTEPS]], 1)
    speeds = np.concatenate([start.speeds[:, None], motion.speeds[:, SUBSTEPS - 1 :: SUBSTEPS]], 1)
    state = np.concatenate([example["proprio"], example["future_proprio"]], axis=1)
    np.testing.assert_allclose(state[..., :2], 2 * places[:, :-1, 0] - 1, atol=1e-6)
    np.testing.assert_allclose(state[..., 2:], speeds[:, :-1, 0] / scenes.SPEED, atol=1e-6)
    np.testing.assert_allclose(example["actions"], 2 * start.commands - 1, atol=1e-6)
    video = np.concatenate([example["observed_video"], example["future_video"]], axis=1)
    for i, t in np.ndindex(20, scenes.FRAMES):
        column, row = (places[i, t, 0] * scenes.SIZE).astype(int)
        np.testing.assert_allclose(video[i, t, row, column], HAND_COLOUR, atol=1e-6)


def test_later_commands_change_nothing_earlier(runs):
    _, start, motion = runs
    targets = np.repeat(start.commands[0], SUBSTEPS // scenes.COMMANDS_A_FRAME, axis=0)
    targets[24:] = 1 - targets[24:]
    other = physics.simulate(
        jnp.asarray(start.places[0]), jnp.asarray(start.speeds[0]), jnp.asarray(targets)
    )
    np.testing.assert_allclose(other.places[:24], motion.places[0, :24], atol=1e-6)
    assert np.abs(other.places[24:, 0] - motion.places[0, 24:, 0]).max() > 0.01


def test_contacts_are_neither_rare_nor_usual(runs):
    contact = runs[0]["contact"]
    assert 0.30 < contact.mean() < 0.40
    assert contact.mean(axis=0).min() > 0.2 and contact.mean(axis=0).max() < 0.55
    # Not told by the frame before: both ways are usual.
    before, now = contact[:, :-1] == 1, contact[:, 1:] == 1
    assert 0.4 < now[before].mean() < 0.6 and 0.2 < now[~before].mean() < 0.35
