"""The graft task on real episodes: losses by hand, nothing of the future, exact trainable names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.tasks.build import build
from roam_jax.tasks.streams import stream_error
from roam_jax.train import names
from roam_jax.train.state import partition
from tests.tasks.models import first_batch, make_params

OUTPUT_SIDE = ("time_embedding", "norm_final", "norm_out", "proj_out")


@pytest.fixture
def experiment(robot_config):
    robot_config.data.encode_once = 0
    return build(robot_config)


def test_actions_at_pure_noise_see_nothing_of_the_future(experiment):
    params, batch = make_params(experiment), first_batch(experiment)
    model, time = experiment.model, experiment.time
    noise = jax.random.normal(jax.random.key(0), (4, time.latents, *model.backbone.latent_shape))

    @jax.jit
    def predict(batch):
        outputs, _ = model.predict(params, batch, timesteps=jnp.full(4, 999), noise=noise, rounds=2)
        return outputs

    base = predict(batch)
    frames = batch["frames"].copy()
    frames[:, time.observed_frames :] = 255 - frames[:, time.observed_frames :]
    changed = {**batch, "frames": frames, "action_chunk": -batch["action_chunk"]}
    outputs = predict(changed)
    np.testing.assert_array_equal(outputs["actions"], base["actions"])
    np.testing.assert_array_equal(outputs["noisy"], base["noisy"])
    assert np.abs(outputs["clean"] - base["clean"])[:, time.t_current :].max() > 1e-3
    # What it may see does matter.
    frames = batch["frames"].copy()
    frames[:, 0] = 255 - frames[:, 0]
    assert np.abs(predict({**batch, "frames": frames})["actions"] - base["actions"]).max() > 1e-5
    past = predict({**batch, "past_actions": -batch["past_actions"]})
    assert np.abs(past["actions"] - base["actions"]).max() > 1e-5


def test_loss_is_the_weighted_sum_of_both_errors(experiment, robot_config):
    robot_config.canvas.visual_weight, robot_config.canvas.action_weight = 0.5, 2.0
    robot_config.loss.deploy_fraction = 0.75
    experiment = build(robot_config)
    params, batch = make_params(experiment), first_batch(experiment)
    model, rng = experiment.model, jax.random.key(7)
    loss, metrics = jax.jit(model.loss, static_argnames="rounds")(params, batch, rng, rounds=1)

    time_rng, noise_rng, _ = jax.random.split(rng, 3)
    timesteps = jax.random.randint(time_rng, (4,), 0, 1000).at[:3].set(999)
    noise = jax.random.normal(noise_rng, (4, experiment.time.latents, *model.backbone.latent_shape))
    outputs, _ = jax.jit(
        lambda: model.predict(params, batch, timesteps=timesteps, noise=noise, rounds=1)
    )()
    alpha = model.schedule.alphas_cumprod[timesteps][:, None, None, None, None]
    clean = np.asarray(outputs["clean"], np.float64)
    velocity = np.sqrt(alpha) * np.asarray(noise) - np.sqrt(1 - alpha) * clean
    diffusion = np.mean((np.asarray(outputs["velocity"]) - velocity)[:, 2:] ** 2)
    action = np.mean((np.asarray(outputs["actions"]) - batch["action_chunk"]) ** 2)
    np.testing.assert_allclose(metrics["loss/diffusion"], diffusion, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/action"], action, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * diffusion + 2 * action, rtol=1e-5)


def test_observed_frames_enter_clean(experiment):
    params, batch = make_params(experiment), first_batch(experiment)
    time, backbone = experiment.time, experiment.model.backbone
    noise = jnp.ones((4, time.latents, *backbone.latent_shape))
    outputs, _ = jax.jit(
        lambda: experiment.model.predict(
            params, batch, timesteps=jnp.full(4, 500), noise=noise, rounds=1
        )
    )()
    video = jnp.moveaxis(batch["frames"][:, : time.observed_frames] / 127.5 - 1, -1, 1)
    mean, _ = jax.jit(lambda v: backbone.vae.apply({"params": params["vae"]}, v, method="encode"))(
        video.astype(jnp.float32)
    )
    seen = np.moveaxis(np.asarray(mean), 2, 1) * backbone.vae_config.scaling_factor
    np.testing.assert_allclose(outputs["noisy"][:, : time.t_current], seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, t_current, predicted", [("pooled", 2, 1), ("tokens", 1, 8)])
def test_other_decoders_and_windows_without_past_actions(robot_config, kind, t_current, predicted):
    robot_config.decoder.kind, robot_config.canvas.t_current = kind, t_current
    experiment = build(robot_config)
    params, batch = make_params(experiment), first_batch(experiment, encoded=True)
    model, rng = experiment.model, jax.random.key(0)
    grads, metrics = jax.jit(jax.grad(model.loss, has_aux=True), static_argnums=3)(
        params, batch, rng, 2
    )
    assert (np.abs(grads["blocks"]["loop"]["gate"][:, 0]) > 0).all()
    outputs, _ = jax.jit(
        lambda: model.predict(
            params,
            batch,
            timesteps=jnp.full(4, 999),
            noise=jnp.zeros((4, 3, 16, 8, 8)),
            rounds=2,
        )
    )()
    assert outputs["actions"].shape == (4, predicted, 7)
    error = np.asarray(outputs["actions"]) - batch["action_chunk"][:, :predicted]
    found = stream_error(outputs["actions"], batch, "actions")
    np.testing.assert_allclose(found, np.mean(error**2, axis=(1, 2)), rtol=1e-5)
    assert np.isfinite(float(metrics["loss/action"]))


@pytest.mark.parametrize(
    "policy, prefixes",
    [
        ("full", ()),
        ("half", OUTPUT_SIDE),
        ("none", (*OUTPUT_SIDE, "patch_embed")),
        ("unfrozen", (*OUTPUT_SIDE, "patch_embed", "blocks")),
    ],
)
def test_exactly_these_names_train(robot_config, policy, prefixes):
    robot_config.freeze = policy
    experiment = build(robot_config)
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
    trainable, frozen = partition(shapes, experiment.task.trainable)
    for name in names.flatten(trainable):
        assert name.startswith(("graft/", "blocks/loop/", *(f"{p}/" for p in prefixes)))
    allowed = {"vae", "blocks", "patch_embed", *OUTPUT_SIDE} - set(prefixes)
    for name in names.flatten(frozen):
        assert name.split("/")[0] in allowed and not name.startswith("blocks/loop/")


def test_encoded_windows_give_the_same_loss(experiment, robot_config, bridge_root):
    params = make_params(experiment)
    batch = first_batch(experiment)
    robot_config.data.encode_once = 256
    encoded = build(robot_config)
    source = encoded.encoded(encoded.members[0].train)
    latents = [source[i] for i in range(4)]
    latents = {name: np.stack([w[name] for w in latents]) for name in latents[0]}
    assert {n: x.shape for n, x in latents.items()} == {
        n: spec.shape for n, spec in encoded.task.batch_spec.items()
    }
    loss = jax.jit(experiment.model.loss, static_argnames="rounds")
    a, _ = loss(params, batch, jax.random.key(0), rounds=1)
    b, _ = loss(params, latents, jax.random.key(0), rounds=1)
    np.testing.assert_allclose(a, b, rtol=1e-5)
