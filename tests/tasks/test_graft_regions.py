"""The graft task with every region and with diffused actions, on robot episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.graft_canvas import PAST
from roam_jax.tasks.build import build
from roam_jax.tasks.graft_sampling import sample_actions
from roam_jax.tasks.streams import NoisedActions
from roam_jax.train import names
from roam_jax.train.state import partition
from tests.tasks.models import first_batch, make_params

STEPS = 3


@pytest.fixture
def all_regions(robot_config):
    """A config with proprio, reward and thought cells, and a clean timestep of observed frames."""
    canvas = robot_config.canvas
    canvas.proprio, canvas.reward = True, True
    canvas.proprio_weight, canvas.reward_weight = 0.5, 0.25
    canvas.thought_cells, canvas.thought_period = 2, 2
    robot_config.loss.clean_timestep = "zero"
    robot_config.data.encode_once = 0
    return robot_config


def draws(model, *, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    shape = (4, model.time.latents, *model.backbone.latent_shape)
    return {
        "noise": jax.random.normal(keys[0], shape),
        "action_noise": jax.random.normal(keys[1], (4, model.time.chunk, 7)),
    }


def deploy(model, params, **options):
    """What the policy predicts of a batch, compiled: at t = 999, whatever the decoder."""
    drawn, pure = draws(model), jnp.full(4, 999)

    def predict(batch):
        if model.diffuses_actions:
            settings = {**drawn, "steps": STEPS, "rounds": 2, **options}
            return sample_actions(model, params, batch, timesteps=pure, **settings)[0]
        settings = {"noise": drawn["noise"], "rounds": 2, **options}
        return model.predict(params, batch, timesteps=pure, **settings)[0]

    return jax.jit(predict)


@pytest.mark.parametrize(
    "decoder, reads_new",
    [
        ("tokens", 0.0),
        ("tokens_diffused", 0.0),
        ("cross_attention", 0.0),
        ("pooled", 0.1),
        ("per_frame", 0.0),
    ],
)
def test_no_region_sees_the_future(all_regions, decoder, reads_new):
    all_regions.decoder.kind = decoder
    all_regions.topology.backbone_reads_new = reads_new
    experiment = build(all_regions)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model, now = experiment.model, experiment.time.t_current
    predict = deploy(model, params)
    base = predict(batch)
    # Latents of observed frames are encoded without the others, so only the targets change.
    later = batch["target_latents"].copy()
    later[:, now:] = -later[:, now:]
    future = ("action_chunk", "future_proprio", "future_reward")
    changed = predict({**batch, "target_latents": later, **{n: 1 - batch[n] for n in future}})
    for name in ("actions", "proprio", "reward", "noisy"):
        np.testing.assert_array_equal(changed[name], base[name], err_msg=name)
    for name in ("observed_proprio", "observed_reward", "past_actions"):
        if name == "past_actions" and PAST not in model.module.layout.regions:
            continue
        moved = predict({**batch, name: batch[name] + 1})
        assert np.abs(moved["proprio"] - base["proprio"]).max() > 1e-6, name


def test_loss_is_the_weighted_sum_over_all_streams(all_regions):
    experiment = build(all_regions)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model, rng = experiment.model, jax.random.key(3)
    loss, metrics = jax.jit(model.loss, static_argnames="rounds")(params, batch, rng, rounds=1)

    time_rng, noise_rng, _ = jax.random.split(rng, 3)
    timesteps = jax.random.randint(time_rng, (4,), 0, 1000).at[:2].set(999)
    noise = jax.random.normal(noise_rng, (4, experiment.time.latents, *model.backbone.latent_shape))
    outputs, _ = jax.jit(
        lambda: model.predict(params, batch, timesteps=timesteps, noise=noise, rounds=1)
    )()
    expected = {
        name: np.mean(np.square(np.asarray(outputs[name]) - batch[target]))
        for name, target in (("proprio", "future_proprio"), ("reward", "future_reward"))
    }
    np.testing.assert_allclose(metrics["loss/proprio"], expected["proprio"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/reward"], expected["reward"], rtol=1e-5)
    total = metrics["loss/diffusion"] + metrics["loss/action"]
    total += 0.5 * expected["proprio"] + 0.25 * expected["reward"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_observed_frames_can_have_a_clean_timestep_of_their_own(all_regions):
    """`zero` is (B, F) timesteps with zeros; `global` is one a row."""
    experiments = {}
    for setting in ("global", "zero"):
        all_regions.loss.clean_timestep = setting
        experiments[setting] = build(all_regions)
    experiment = experiments["zero"]
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    noise = draws(experiment.model)["noise"]

    def predict(model):
        timesteps = jnp.array([999, 700, 30, 0])
        return model.predict(params, batch, timesteps=timesteps, noise=noise, rounds=1)[0]

    outputs = {
        setting: jax.jit(functools.partial(predict, one.model))()
        for setting, one in experiments.items()
    }
    for name in ("velocity", "actions"):
        found, expected = (np.asarray(outputs[s][name]) for s in ("zero", "global"))
        # The row at t = 0 has the same timestep everywhere.
        np.testing.assert_allclose(found[3], expected[3], rtol=1e-4, atol=1e-5)
        assert (np.abs(found - expected)[:3].max(axis=tuple(range(1, found.ndim))) > 1e-5).all()
    all_regions.loss.clean_timestep = "zeros"
    with pytest.raises(ValueError, match="loss.clean_timestep = 'zeros': expected one of global"):
        build(all_regions)


def test_only_kernels_decay(all_regions):
    all_regions.decoder.kind = "cross_attention"
    all_regions.loop.gate_scope = "token"
    task = build(all_regions).task
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    trained = names.flatten(partition(shapes, task.trainable)[0])
    decayed = {name for name in trained if not names.matches(name, task.no_decay)}
    assert decayed == {name for name in trained if name.endswith("/kernel")}
    assert "blocks/loop/token" in trained and "graft/thought/query" in trained


def test_new_regions_that_nothing_reads_are_refused(all_regions):
    all_regions.decoder.kind = "pooled"
    all_regions.canvas.proprio_weight = all_regions.canvas.reward_weight = 0.0
    with pytest.raises(ValueError, match="nothing reads the new regions: decoder.kind = 'pooled'"):
        build(all_regions)


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("canvas", "action_weight", -1.0),
        ("canvas", "visual_weight", float("nan")),
        ("canvas", "reward_weight", float("inf")),
        ("topology", "backbone_reads_new", -0.1),
        ("loss", "deploy_fraction", 1.5),
    ],
)
def test_weights_out_of_range_are_refused_by_their_key(all_regions, section, key, value):
    all_regions.decoder.kind = "pooled"
    all_regions[section][key] = value
    with pytest.raises(ValueError, match=rf"{section}\.{key} = {value}: expected"):
        build(all_regions)


def test_diffused_actions_learn_their_velocity(robot_config):
    robot_config.decoder.kind = "tokens_diffused"
    experiment = build(robot_config)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model, rng = experiment.model, jax.random.key(5)
    _, metrics = jax.jit(model.loss, static_argnames="rounds")(params, batch, rng, rounds=1)

    time_rng, noise_rng, _, action_rng = jax.random.split(rng, 4)
    timesteps = jax.random.randint(time_rng, (4,), 0, 1000).at[:2].set(999)
    shape = (4, experiment.time.latents, *model.backbone.latent_shape)
    time_rng, action_rng = jax.random.split(action_rng)
    levels = jax.random.randint(time_rng, (4,), 0, 1000)
    chunk = batch["action_chunk"]
    noise = np.asarray(jax.random.normal(action_rng, chunk.shape))
    alpha = model.schedule.alphas_cumprod[levels][:, None, None]
    noised = np.sqrt(alpha) * chunk + np.sqrt(1 - alpha) * noise
    velocity = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * chunk
    outputs, _ = jax.jit(
        lambda: model.predict(
            params,
            batch,
            timesteps=timesteps,
            noise=jax.random.normal(noise_rng, shape),
            actions=NoisedActions(jnp.asarray(noised, jnp.float32), levels),
            rounds=1,
        )
    )()
    expected = np.mean(np.square(np.asarray(outputs["actions"]) - velocity))
    np.testing.assert_allclose(metrics["loss/action"], expected, rtol=1e-4)


def test_sampling_is_the_plain_loop_over_predictions(robot_config):
    robot_config.decoder.kind = "tokens_diffused"
    experiment = build(robot_config)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model = experiment.model
    drawn = draws(model)
    found = deploy(model, params)(batch)["actions"]

    @jax.jit
    def velocity(actions, t):
        outputs, _ = model.predict(
            params,
            batch,
            timesteps=jnp.full(4, 999),
            noise=drawn["noise"],
            actions=NoisedActions(actions, jnp.full(4, t)),
            rounds=2,
        )
        return outputs["actions"]

    actions = drawn["action_noise"]
    alphas = np.append(model.schedule.alphas_cumprod, 1.0)
    signals, sigmas = np.sqrt(alphas), np.sqrt(1 - alphas)
    # As diffusers leads: 1000 // 3 timesteps further, and to clean data (-1) in the end.
    for t, following in [(999, 666), (666, 333), (332, -1)]:
        v = velocity(actions, jnp.asarray(t))
        x0, noise = signals[t] * actions - sigmas[t] * v, signals[t] * v + sigmas[t] * actions
        actions = signals[following] * x0 + sigmas[following] * noise
    np.testing.assert_allclose(found, actions, rtol=1e-4, atol=1e-5)
    alone = deploy(model, params, wanted=("actions",))(batch)
    assert "velocity" not in alone
    np.testing.assert_allclose(alone["actions"], found, rtol=1e-4, atol=1e-5)
