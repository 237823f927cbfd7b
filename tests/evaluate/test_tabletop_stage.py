"""The tabletop in closed loop: the expert's own motion brings a policy to the goal."""

import numpy as np
import pytest

from roam_jax.contracts import POSE_CHANGE_AND_GRIPPER, TimeSpec, VectorSpec
from roam_jax.evaluate.closed_loop import RolloutOptions
from roam_jax.evaluate.ensembling import Chunking
from roam_jax.evaluate.play import play
from roam_jax.evaluate.report_rollout import EXPERT
from roam_jax.evaluate.rollouts import play_worlds
from roam_jax.evaluate.tabletop_stage import (
    STEPS,
    GraftPlayer,
    RandomHand,
    TabletopExpert,
    TabletopStage,
    TabletopWorlds,
    require_tabletop,
)
from roam_jax.sim.environments import PLAIN_LOOK, draw_environment
from roam_jax.sim.gymnasium_worlds import TabletopEnv, WorldEnv
from roam_jax.sim.tabletop import SimulationDivergedError

CHUNK = 4


def environments(kind, count=3):
    return [draw_environment(np.random.default_rng([9, i]), kind=kind) for i in range(count)]


class Oracle:
    """Predicts the changes of the state that an expert's episode had."""

    time, actions, rate = TimeSpec(9, 2), POSE_CHANGE_AND_GRIPPER, 5.0

    def __init__(self, states, commands):
        self.states, self.commands = states, commands
        self.seen, self.texts = [], []

    def __call__(self, observation, *, instruction, seed):
        # The first call is before the first step.
        step = max(len(self.seen) - 1, 0) * CHUNK
        self.seen.append(observation)
        self.texts.append(instruction)
        later = [min(step + i, len(self.states) - 1) for i in range(CHUNK + 1)]
        states = self.states[later]
        moved = np.diff(states[..., :6], axis=0)
        grippers = self.commands[[min(i, len(self.commands) - 1) for i in later[:-1]], :, 6:]
        return np.concatenate([moved, grippers], axis=-1).swapaxes(0, 1)


class Still:
    """Never moves; remembers what it was shown."""

    time, actions, rate = TimeSpec(9, 2), POSE_CHANGE_AND_GRIPPER, 5.0

    def __call__(self, observation, *, instruction, seed):
        self.observation, self.instruction = observation, instruction
        return np.zeros((len(instruction), CHUNK, 7))


def robot(actions, rate):
    oracle = Oracle(None, None)
    oracle.actions, oracle.rate = actions, rate
    return oracle


def expert_episode(worlds):
    expert = TabletopExpert()
    expert.reset(worlds, np.random.default_rng(0))
    states, commands = [worlds.observe()["state"]], []
    for _ in range(STEPS):
        commands.append(expert.act(worlds))
        found = worlds.step(commands[-1])
        states.append(worlds.observe()["state"])
    assert found.success.all()
    return np.array(states), np.array(commands)


def test_the_experts_motion_succeeds_for_a_policy():
    states, commands = expert_episode(TabletopWorlds(environments("reach")))
    oracle, worlds = Oracle(states, commands), TabletopWorlds(environments("reach"))
    player = GraftPlayer(oracle, chunking=Chunking(replan=CHUNK), pixels=8)
    found = play_worlds(worlds, player, steps=STEPS, rng=np.random.default_rng(0))
    assert found.success.all() and not found.diverged.any()
    assert oracle.texts[0] == [one.instruction for one in environments("reach")]
    # What it was shown: at first its world at rest, later what happened.
    first, last = oracle.seen[1], oracle.seen[-1]
    assert (
        first.frames.shape == (3, 5, 8, 8, 3) and (first.frames[:, 0] == first.frames[:, 4]).all()
    )
    assert (first.past_actions[..., :6] == 0).all() and first.proprio.shape == (3, 2, 7)
    moved = last.proprio[:, 1, :6] - last.proprio[:, 0, :6]
    np.testing.assert_allclose(last.past_actions[..., :6].sum(axis=1), moved, atol=1e-9)
    assert set(np.unique(last.past_actions[..., 6])) <= {0.0, 1.0}
    for observation in oracle.seen:
        assert np.isfinite(observation.past_actions).all()


def test_a_stage():
    options = RolloutOptions(2, Chunking(replan=CHUNK), resamples=10)

    def policies(params, rounds):
        return Oracle(*expert_episode(TabletopWorlds(stage._environments)))

    stage = TabletopStage("push", PLAIN_LOOK, policies, options)
    expert, hand = stage.reference(EXPERT), stage.reference("random")
    assert expert.success.all() and expert.frames.shape == (2, STEPS + 1, 96, 96, 3)
    assert not hand.success.any() and hand.frames is None
    assert np.abs(expert.frames[0].astype(int) - expert.frames[1]).max() > 50
    found = stage.policy(None, rounds=1, filmed=False)
    assert found.success.shape == (2,) and len(found.seconds) == STEPS
    again = TabletopStage("push", PLAIN_LOOK, policies, options)
    assert again._environments == stage._environments


def test_one_that_diverges_leaves_the_others_alone(monkeypatch):
    worlds = TabletopWorlds(environments("reach"))

    def fail(action):
        raise SimulationDivergedError("BADQACC")

    monkeypatch.setattr(worlds.tables[1], "step", fail)
    found = play_worlds(worlds, TabletopExpert(), steps=STEPS, rng=np.random.default_rng(0))
    assert found.diverged.tolist() == [False, True, False]
    assert found.success.tolist() == [True, False, True] and found.returns[1] == 0


def test_random_hands_stay_within_an_experts_reach():
    worlds, hand = TabletopWorlds(environments("reach")), RandomHand()
    hand.reset(worlds, np.random.default_rng(0))
    actions = np.array([hand.act(worlds) for _ in range(20)])
    assert np.abs(actions[..., :3]).max() <= 0.032 and set(np.unique(actions[..., 6])) == {0, 1}


def test_policies_of_other_robots_are_refused():
    other = VectorSpec(("a", "b"), ("m", "m"), ("linear", "linear"))
    with pytest.raises(ValueError, match="actions are a, b: the tabletop expects x, y, z"):
        require_tabletop(robot(other, 5.0))
    with pytest.raises(ValueError, match="2.5 actions a second, the tabletop expects 5"):
        require_tabletop(robot(POSE_CHANGE_AND_GRIPPER, 2.5))


def test_the_tabletop_as_a_gymnasium_environment():
    policy = Still()
    found = play(policy, TabletopEnv("push", size=16, steps=6), episodes=2)
    assert found.success.tolist() == [False, False] and found.returns.tolist() == [0, 0]
    assert len(found.seconds) == 12
    assert policy.observation.frames.shape == (1, 5, 16, 16, 3)
    assert np.abs(policy.observation.past_actions[..., :6]).max() < 0.01
    assert policy.instruction[0].startswith(("push", "slide"))
    with pytest.raises(
        ValueError,
        match=r"WorldEnv does not fit the graft's policy: image: not there \(there are .*expected "
        r"\(any, any, 3\); state: .*\(7,\); instruction: .* a text; action: \(2,\) there",
    ):
        play(policy, WorldEnv("reach", "arm2"), episodes=1)
