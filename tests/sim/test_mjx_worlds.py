"""MJX against native MuJoCo, without contacts and with them; each world compiles one function."""

import jax.numpy as jnp
import numpy as np

from roam_jax.sim.mjx_worlds import MJXWorlds
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.worlds import make_world

# Apart by at most this (m or rad) after 100 physics steps: episodes without contacts, three of four
# with contacts, and all of them. Where a prop sticks or slips, rounding decides.
BOUND, USUAL, LARGEST = 1e-5, 1e-3, 0.03
CONTROL_STEPS, COUNT = 10, 32


def apart(native: NativeWorlds, state) -> np.ndarray:
    return np.abs(np.asarray(state.qpos) - native.qpos).max(axis=1)


def test_reach_agrees_and_one_that_diverges_stops_alone():
    world = make_world("reach", "arm2")
    draws = world.draw(np.random.default_rng(0), COUNT)
    native, worlds = NativeWorlds(world, draws), MJXWorlds(world)
    state = worlds.reset(draws)
    state = state._replace(qvel=state.qvel.at[3, 0].set(1e12))
    rest = np.arange(COUNT) != 3
    rng = np.random.default_rng(1)
    for _ in range(CONTROL_STEPS):
        actions = rng.uniform(-1, 1, native.command.shape).astype(np.float32)
        outcome = native.step(actions)
        state, observed, reward, success = worlds.step(state, actions)
    assert world.substeps * CONTROL_STEPS == 100
    assert apart(native, state)[rest].max() < BOUND
    assert (np.asarray(state.diverged) != rest).all()
    assert np.isfinite(state.qpos).all() and reward[3] == 0 and not success[3]
    np.testing.assert_allclose(reward[rest], outcome.reward[rest], atol=BOUND)
    for name, value in native.observe().items():
        assert observed[name].shape == value.shape
        np.testing.assert_allclose(observed[name][rest], value[rest], atol=1e-4)


def test_a_push_rolls_out_under_one_jit_and_agrees():
    world = make_world("push", "arm2")
    draws = world.draw(np.random.default_rng(0), COUNT)
    native, worlds = NativeWorlds(world, draws), MJXWorlds(world)

    def towards_the_prop(observation):
        """Turns the shoulder to where the prop is, with the elbow as it is."""
        tip, prop = observation["tip"][:, 0], observation["prop"][:, 0]
        turn = jnp.arctan2(prop[:, 1], prop[:, 0]) - jnp.arctan2(tip[:, 1], tip[:, 0])
        far = jnp.hypot(tip[:, 0], tip[:, 1]) - jnp.hypot(prop[:, 0], prop[:, 1])
        return jnp.clip(jnp.stack([4 * turn, 10 * far], axis=-1), -1, 1)

    state, played = worlds.rollout(towards_the_prop, worlds.reset(draws), CONTROL_STEPS)
    np.testing.assert_array_equal(state.steps, CONTROL_STEPS)
    assert played.rewards.shape == (CONTROL_STEPS, COUNT)
    np.testing.assert_allclose(played.observations["tip"][0], native.observe()["tip"], atol=1e-6)
    for actions in played.actions:
        outcome = native.step(np.asarray(actions))
    touched = np.abs(native.prop - draws.prop).max(axis=1) > 1e-3
    difference = apart(native, state)
    assert touched.sum() > 5 and difference[~touched].max(initial=0.0) < BOUND
    assert (difference < USUAL).mean() > 0.75, np.sort(difference)
    assert difference.max() < LARGEST
    near = difference < BOUND
    np.testing.assert_allclose(played.rewards[-1][near], outcome.reward[near], atol=BOUND)
    np.testing.assert_array_equal(played.successes[-1][near], outcome.success[near])
