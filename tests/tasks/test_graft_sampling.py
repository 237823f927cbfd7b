"""Sampling video and actions jointly: against single predictions, NumPy, and a changed future."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.diffusion.samplers import Sampler
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.graft_sampling import encode_observed, sample_actions, sample_jointly
from roam_jax.tasks.sketch import sketch
from tests.tasks.models import make_params, random_batch

ROWS = 2


def make_plan(config, decoder):
    """A model of two cameras, both predicted, and of the robot's state."""
    config.train.batch_size, config.data.image_size = ROWS, (16, 32)
    config.data.cameras, config.data.encode_once = ("image_0", "image_1"), 0
    config.canvas.camera_weight, config.canvas.proprio = 0.5, True
    config.canvas.proprio_weight, config.decoder.kind = 0.5, decoder
    return sketch(config)


def draws(model, *, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    time = model.time
    drawn = {
        "noise": jax.random.normal(keys[0], (ROWS, time.latents, *model.backbone.latent_shape)),
        "camera_noise": jax.random.normal(keys[1], (ROWS, *model.camera_noise_shape)),
        "step_noise_key": keys[3],
    }
    if model.diffuses_actions:
        drawn["action_noise"] = jax.random.normal(keys[2], (ROWS, time.chunk, 7))
    return drawn


def random_windows(plan):
    """A batch of noise whose videos are encoded already, as no VAE would."""
    batch, rng, time = random_batch(plan.task), np.random.default_rng(1), plan.time
    del batch["frames"], batch["camera_frames"]
    shape = plan.model.backbone.latent_shape
    for name, rows in (("", (ROWS,)), ("_camera", (ROWS, 1))):
        latents = rng.standard_normal((*rows, time.latents, *shape)).astype(np.float32)
        batch[f"observed{name}_latents"] = latents[..., : time.t_current, :, :, :] + 0.1
        batch[f"target{name}_latents"] = latents
    return batch


def sample(model, sampler, **options):
    """Compiled, of (params, batch, draws)."""
    return jax.jit(
        lambda params, batch, drawn: sample_jointly(
            model, params, batch, sampler=sampler, rounds=1, **drawn, **options
        )
    )


@pytest.mark.parametrize("decoder", ["tokens", "tokens_diffused"])
def test_one_step_is_the_deployed_prediction(robot_config, decoder):
    plan = make_plan(robot_config, decoder)
    params, batch, model = make_params(plan), random_windows(plan), plan.model
    drawn = draws(model)
    found = sample(model, Sampler("ddim", 1))(params, batch, drawn)
    del drawn["step_noise_key"]
    pure = {"timesteps": jnp.full(ROWS, 999), "rounds": 1}

    @jax.jit
    def deployed(batch):
        if model.diffuses_actions:
            return sample_actions(model, params, batch, **drawn, **pure, steps=1)[0]
        return model.predict(params, batch, **drawn, **pure)[0]

    expected, now = deployed(batch), model.time.t_current
    # At t = 999 x0 is minus the velocity.
    for name, velocity in (
        ("latents", expected["velocity"][:, now:]),
        ("camera_latents", expected["camera_velocity"]),
    ):
        x0 = found[name][:, now:] if name == "latents" else found[name]
        np.testing.assert_allclose(x0, -velocity, rtol=1e-4, atol=1e-5)
        assert np.abs(velocity).max() > 0.1
    for name in ("actions", "proprio"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert np.abs(found[name]).max() > 1e-3
    # With one step, the first is the last.
    regressed = {"proprio"} if model.diffuses_actions else {"actions", "proprio"}
    assert set(found["last"]) == regressed
    for name, value in found["last"].items():
        np.testing.assert_array_equal(value, found[name])


def test_nothing_of_the_recorded_future_enters(robot_config):
    plan = make_plan(robot_config, "tokens_diffused")
    params, batch, model = make_params(plan), random_batch(plan.task), plan.model
    drawn, run = draws(model), sample(model, Sampler("dpm", 3))
    found = run(params, batch, drawn)
    seen, now = model.time.observed_frames, model.time.t_current
    changed = dict(batch)
    for name in ("frames", "camera_frames"):
        changed[name] = batch[name].copy()
        changed[name][..., seen:, :, :, :] = 255 - changed[name][..., seen:, :, :, :]
    for name in ("action_chunk", "future_proprio", "future_reward"):
        changed[name] = 1 - batch[name]
    jax.tree.map(np.testing.assert_array_equal, run(params, changed, drawn), found)
    assert run._cache_size() == 1
    # What was observed comes out as it was encoded, and matters for what comes after it.
    observed = jax.jit(lambda b: encode_observed(model, params, b)["observed_latents"])(batch)
    np.testing.assert_allclose(found["latents"][:, :now], observed, rtol=1e-4, atol=1e-5)
    other = run(params, {**batch, "frames": 255 - batch["frames"]}, drawn)
    for name in ("latents", "camera_latents", "actions"):
        assert np.abs(np.asarray(other[name]) - np.asarray(found[name])).max() > 1e-4, name


def test_the_recorded_future_need_not_be_there(robot_config):
    plan = make_plan(robot_config, "tokens")
    params, windows, model = make_params(plan), random_windows(plan), plan.model
    drawn, run = draws(model), sample(model, Sampler("ddim", 2))
    later = ("target_latents", "target_camera_latents", "action_chunk", "future_proprio")
    cut = {name: x for name, x in windows.items() if name not in later}
    found, expected = run(params, cut, drawn), run(params, windows, drawn)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Known(GraftModel):
    """A model whose velocities are known functions of what it is given."""

    def denoise(self, params, batch, noised, *, timesteps, actions=None, **options):
        """Linear in the sample and in the mean of the text, with another factor at each time."""
        del params, options
        factor = 0.2 + timesteps / 1000
        text = jnp.mean(batch["text"], axis=(1, 2))

        def velocity(x):
            rows = (-1,) + (1,) * (x.ndim - 1)
            return factor.reshape(rows) * x + text.reshape(rows)

        outputs = {
            "velocity": velocity(noised.latents),
            "camera_velocity": velocity(noised.cameras),
            "proprio": velocity(noised.latents[:, :, 0, 0, :2]),
        }
        if actions is not None:
            outputs["actions"] = velocity(actions.values)
        return outputs, {}


@pytest.fixture
def known(robot_config):
    """Model, batch and draws of the known velocities; one dimension of the robot is missing."""
    plan = make_plan(robot_config, "tokens_diffused")
    fields = {f.name: getattr(plan.model, f.name) for f in dataclasses.fields(plan.model)}
    batch = random_windows(plan)
    batch["text"] = batch["text"] + np.arange(1, ROWS + 1, dtype=np.float32)[:, None, None]
    batch["action_mask"] = np.array([[1, 1, 0, 1, 1, 1, 1]] * ROWS, np.float32)
    return Known(**fields), batch, draws(plan.model)


def trajectory(model, x, text, *, steps, scales=None, empty=0.0):
    """DDIM in float64, step by step from its definition; x at the end and before every step."""
    x, seen = np.asarray(x, np.float64), []
    text = text.reshape((-1,) + (1,) * (x.ndim - 1))
    timesteps = np.arange(1000, 0, -1000 // steps) - 1
    alphas = np.append(model.schedule.alphas_cumprod, 1.0)
    for number, t in enumerate(timesteps):
        seen.append(x)
        factor = 0.2 + t / 1000
        scale = 1.0 if scales is None else scales[number]
        without = factor * x + empty
        v = without + scale * (factor * x + text - without)
        now, then = alphas[t], alphas[t - 1000 // steps]
        x0 = np.sqrt(now) * x - np.sqrt(1 - now) * v
        noise = np.sqrt(now) * v + np.sqrt(1 - now) * x
        x = np.sqrt(then) * x0 + np.sqrt(1 - then) * noise
    return x, seen


@pytest.mark.parametrize("guided", [False, True])
def test_the_trajectory_of_known_velocities(known, guided):
    model, batch, drawn = known
    now, options, steps = model.time.t_current, {}, 5
    scales, empty = np.array([6.0, 5.0, 4.0, 2.0, 1.0], np.float32), 0.25
    if guided:
        text = np.full(batch["text"].shape[1:], empty, np.float32)
        options = {"guidance": scales, "empty_text": text}
    found = sample(model, Sampler("ddim", steps), **options)({"vae": {}}, batch, drawn)
    text = batch["text"].astype(np.float64).mean(axis=(1, 2))
    guide = {"scales": scales, "empty": empty} if guided else {}
    start = drawn["noise"][:, now:]
    video, seen = trajectory(model, start, text, steps=steps, **guide)
    cameras, _ = trajectory(model, drawn["camera_noise"], text, steps=steps, **guide)
    # Actions follow the conditional pass alone.
    actions, _ = trajectory(model, drawn["action_noise"], text, steps=steps)
    np.testing.assert_allclose(found["latents"][:, now:], video, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["camera_latents"], cameras, rtol=1e-4, atol=1e-4)
    mask = batch["action_mask"][:, None]
    np.testing.assert_allclose(found["actions"], actions * mask, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(found["actions"])[..., 2], 0)
    np.testing.assert_array_equal(found["latents"][:, :now], batch["observed_latents"])
    # What is regressed is read at the first step, and beside it at the last.
    rows = text[:, None, None]
    for name, x, t in ((found["proprio"], seen[0], 999), (found["last"]["proprio"], seen[-1], 199)):
        expected = (0.2 + t / 1000) * x[:, :, 0, 0, :2] + rows
        np.testing.assert_allclose(name[:, now:], expected, rtol=1e-4, atol=1e-4)


def test_noise_on_the_way_is_of_each_stream_and_step_alone(known):
    """The difference to a run without step noise is what was added: no two parts agree."""
    model, batch, drawn = known
    ends = {}
    for seed in (0, 1):
        key = jax.random.key(seed)
        run = sample(model, Sampler("dpm", 2))
        ends[seed] = run({"vae": {}}, batch, {**drawn, "step_noise_key": key})
    parts = [
        (np.asarray(ends[0][name], np.float64) - np.asarray(ends[1][name])).ravel()[-40:]
        for name in ("latents", "camera_latents", "actions")
    ]
    for number, part in enumerate(parts):
        assert np.count_nonzero(part) > 30
        for other in parts[number + 1 :]:
            assert abs(np.corrcoef(part, other)[0, 1]) < 0.6
    again = run({"vae": {}}, batch, {**drawn, "step_noise_key": jax.random.key(1)})
    np.testing.assert_array_equal(again["latents"], ends[1]["latents"])


@pytest.mark.parametrize(
    "missing, message",
    [
        ("camera_noise", r"no camera_noise: expected \(batch, \*\(1, "),
        ("action_noise", r"no action_noise: expected \(batch, 4, 7\), because .*tokens_diffused"),
    ],
)
def test_noise_that_is_missing_is_named(known, missing, message):
    model, batch, drawn = known
    del drawn[missing]
    with pytest.raises(ValueError, match=message):
        sample(model, Sampler("ddim", 1))({"vae": {}}, batch, drawn)


def test_guidance_needs_a_scale_for_each_step_and_an_empty_text(known):
    model, batch, drawn = known
    with pytest.raises(ValueError, match="guidance without empty_text: expected"):
        sample(model, Sampler("ddim", 2), guidance=np.ones(2, np.float32))(
            {"vae": {}}, batch, drawn
        )
    text = batch["text"][0]
    with pytest.raises(ValueError, match=r"guidance of shape \(3,\): expected \(2,\), a scale"):
        sample(model, Sampler("ddim", 2), guidance=np.ones(3, np.float32), empty_text=text)(
            {"vae": {}}, batch, drawn
        )
