"""A cloned policy by hand: what it is shown, and environments that fit or do not."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from roam_jax.evaluate.body_policy import BodyPolicy
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.play import play
from tests.evaluate.fakes import NEAR, STEP, FakeModel, FakeWorlds, make_spec


class LineEnv(gymnasium.Env):
    """One world of `FakeWorlds`; the goal is drawn at its reset."""

    def __init__(self, spec, *, steps=12, tells=True, shows_spec=True):
        if shows_spec:
            self.world_spec = spec
        self._joints, self._steps, self._tells = len(spec.morphology), steps, tells
        self.observation_space = Dict(
            {s.name: Box(-np.inf, np.inf, s.shape, np.float32) for s in spec.streams}
        )
        self.action_space = Box(-1, 1, (self._joints,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.worlds = FakeWorlds(self.np_random.uniform(-0.5, 0.5, (1, self._joints)))
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        outcome = self.worlds.step(action[None])
        info = {"success": bool(outcome.success[0])} if self._tells else {}
        over = self.worlds.time >= self._steps
        return self._seen(), float(outcome.reward[0]), False, over, info

    def _seen(self):
        return {name: rows[0] for name, rows in self.worlds.observe().items()}


def make_policy(*specs, rounds=1, pixels=0, **options):
    return BodyPolicy(
        FakeModel(),
        {"speed": 1.0},
        specs={spec.morphology.name: spec for spec in specs},
        rounds=rounds,
        chunking=Chunking(replan=2),
        pixels=pixels,
        **options,
    )


SPECS = make_spec(2), make_spec(3)


@pytest.fixture(scope="module")
def policy():
    return make_policy(*SPECS)


def test_one_world_or_many(policy):
    worlds = FakeWorlds([[0.15, -0.3, 0.0], [0.0, 0.05, 0.2]])
    seen = worlds.observe()
    found = policy(seen, body="body3")
    assert found.shape == (2, 4, 3)
    np.testing.assert_allclose(found[0, :, 0], [1, 0.5, 0, 0], atol=1e-6)
    alone = policy({name: rows[1] for name, rows in seen.items()}, body="body3")
    np.testing.assert_allclose(alone, found[1], atol=1e-6)
    policy({**seen, "more": np.zeros(3)}, body="body3")


def test_observations_that_do_not_fit_are_refused(policy):
    seen = FakeWorlds([[0.15, -0.3]]).observe()
    for change, message in (
        (lambda s: {"goal": s["goal"]}, "observations have goal: body 'body2' needs joints as"),
        (
            lambda s: {**s, "joints": s["joints"][:, :, :2]},
            r"observation 'joints' has shape \(1, 2, 2\): body 'body2' expects \(2, 3\)",
        ),
        (lambda s: {**s, "goal": s["goal"][0]}, "observations: joints have a leading axis"),
        (lambda s: {**s, "goal": s["goal"][None]}, r"'goal' has shape \(1, 1, 2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(change(seen), body="body2")
    with pytest.raises(ValueError, match="body = 'body4': expected one of body2, body3"):
        policy(seen, body="body4")


def test_an_environment_is_played(policy):
    env = LineEnv(SPECS[1])
    found = play(policy, env, episodes=3, seed=5)
    assert found.success.tolist() == [True] * 3 and not found.diverged.any()
    # With a prediction that is exact the place closes in by `STEP` a step.
    for row in range(3):
        env.reset(seed=5 + row)
        goals = np.abs(env.worlds.goals[0])
        away = [np.max(np.maximum(goals - STEP * (t + 1), 0)) for t in range(12)]
        assert found.returns[row] == pytest.approx(-sum(away), abs=1e-5)
    assert len(found.seconds) == 36
    short = play(policy, env, episodes=1, seed=5, steps=1)
    assert len(short.seconds) == 1 and not short.success[0]
    assert not play(policy, LineEnv(SPECS[0], tells=False), episodes=1).success[0]
    with pytest.raises(ValueError, match="episodes = 0: expected at least 1"):
        play(policy, env, episodes=0)
    with pytest.raises(ValueError, match="steps = 0: expected at least 1"):
        play(policy, env, episodes=1, steps=0)
    assert NEAR < STEP


def test_a_body_is_found_by_its_spaces(policy):
    assert policy.body_of(LineEnv(SPECS[0], shows_spec=False)) == "body2"
    twins = make_policy(SPECS[0])
    twins.specs["twin"] = SPECS[0]
    with pytest.raises(ValueError, match="spaces of the bodies body2, twin: .* body="):
        twins.body_of(LineEnv(SPECS[0], shows_spec=False))
    assert twins.body_of(LineEnv(SPECS[0], shows_spec=False), body="twin") == "twin"


def test_spaces_that_do_not_match_are_refused(policy):
    with pytest.raises(
        ValueError,
        match=r"LineEnv.* does not fit body 'body3' of the policy \(the nearest of body3, body2\): "
        r"joints: shape \(4, 3\) there, expected \(3, 3\); goal: shape \(4, 1\) there, expected "
        r"\(3, 1\); action: \(4,\) there, expected \(3,\)",
    ):
        play(make_policy(make_spec(3), make_spec(2)), LineEnv(make_spec(4)), episodes=1)
    env = LineEnv(SPECS[0])
    del env.observation_space.spaces["goal"]
    env.action_space = Box(-2, 2, (2,), np.float32)
    with pytest.raises(
        ValueError,
        match=r"body 'body2' of the policy: goal: not there \(there are joints\), expected "
        r"\(2, 1\); action: from -2 to 2 there, expected -1 to 1",
    ):
        play(policy, env, episodes=1)
    with pytest.raises(ValueError, match=r"Box\(.*expected a Dict with joints, goal"):
        play(policy, gymnasium.make("Pendulum-v1"), episodes=1)
    with pytest.raises(ValueError, match=r"pixels: not there .*expected \(16, 16, 3\)"):
        play(make_policy(SPECS[0], pixels=16), LineEnv(SPECS[0]), episodes=1)


def test_another_world_is_refused(policy):
    other = make_spec(2, environment="circle")
    with pytest.raises(ValueError, match="body 'body2' was .*environment: here line, there circle"):
        play(policy, LineEnv(other), episodes=1)
