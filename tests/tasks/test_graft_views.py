"""The graft task with further cameras, goals, other frames and other robots, on made-up batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cli.arguments import load_config
from roam_jax.contracts import ArraySpec
from roam_jax.evaluate.parameters import stored_parameters
from roam_jax.evaluate.step_cost import trace_step
from roam_jax.tasks.graft_sampling import sample_actions
from roam_jax.tasks.graft_task import SHARDING_RULES, graft_model, graft_task
from roam_jax.tasks.sketch import Sketch, sketch
from roam_jax.tasks.streams import noise_actions, stream_error
from tests.tasks.models import make_params, random_batch
from tests.tiny_weights import TRANSFORMER

SIZE = 16, 32
STEPS = 2


@pytest.fixture
def config(weights):
    """Three cameras, two of them regions that are predicted, and a goal; frames of 16 x 32."""
    config = load_config("configs/bridge_3loop.py:tiny")
    config.backbone.path = str(weights)
    config.train.batch_size = 4
    config.data.image_size, config.data.encode_once = SIZE, 0
    config.data.cameras, config.data.goal = ("image_0", "image_1", "image_2"), "last"
    config.canvas.camera_weight = 0.5
    config.canvas.proprio, config.canvas.proprio_weight = True, 0.25
    return config


def draws(model, *, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (4, model.time.latents, *model.backbone.latent_shape)
    return {
        "noise": jax.random.normal(keys[0], shape),
        "camera_noise": jax.random.normal(keys[1], (4, *model.camera_noise_shape)),
        "action_noise": jax.random.normal(keys[2], (4, model.time.chunk, 7)),
    }


def deploy(model, params):
    """What the policy predicts of a batch, compiled: at t = 999, whatever the decoder."""
    drawn, pure = draws(model), jnp.full(4, 999)
    if not model.diffuses_actions:
        del drawn["action_noise"]

    def predict(batch):
        if model.diffuses_actions:
            return sample_actions(
                model, params, batch, timesteps=pure, **drawn, steps=STEPS, rounds=2
            )[0]
        return model.predict(params, batch, timesteps=pure, **drawn, rounds=2)[0]

    return jax.jit(predict)


def invert(frames, span):
    """The frames with those of a span of steps inverted."""
    changed = frames.copy()
    changed[..., span, :, :, :] = 255 - changed[..., span, :, :, :]
    return changed


@pytest.mark.parametrize("decoder", ["tokens", "tokens_diffused", "pooled"])
@pytest.mark.parametrize("timestep", ["global", "zero"])
def test_nothing_but_the_goal_sees_the_future(config, decoder, timestep):
    if decoder == "pooled":
        config.topology.backbone_reads_new = 0.1
    config.decoder.kind, config.loss.clean_timestep = decoder, timestep
    plan = sketch(config)
    params, batch, model = make_params(plan), random_batch(plan.task), plan.model
    predict = deploy(model, params)
    base = predict(batch)
    later = slice(plan.time.observed_frames, None)
    changed = {name: invert(batch[name], later) for name in ("frames", "camera_frames")}
    targets = {name: -batch[name] for name in ("action_chunk", "future_proprio")}
    outputs = predict({**batch, **changed, **targets})
    for name in ("actions", "proprio", "camera_velocity", "noisy"):
        np.testing.assert_array_equal(outputs[name], base[name], err_msg=name)
    assert np.abs(outputs["camera_target"] - base["camera_target"]).max() > 1e-3
    # What it may see does matter: every camera's first frame, and the goal.
    first = slice(0, 1)
    for camera in range(2):
        frames = batch["camera_frames"].copy()
        frames[:, camera] = invert(frames[:, camera], first)
        moved = predict({**batch, "camera_frames": frames})
        assert np.abs(moved["actions"] - base["actions"]).max() > 1e-6, camera
    moved = predict({**batch, "goal_frame": 255 - batch["goal_frame"]})
    assert np.abs(moved["actions"] - base["actions"]).max() > 1e-6


def test_every_video_is_encoded_alone(config):
    """Its latents are those of the VAE on that video; rows, cameras and goals do not mix."""
    plan = sketch(config)
    params, batch, backbone = make_params(plan), random_batch(plan.task), plan.model.backbone
    found = jax.jit(functools.partial(backbone.encode_batch, time=plan.time))(params["vae"], batch)
    assert {n: x.shape for n, x in found.items()} == {
        n: spec.shape for n, spec in plan.encoded_task.batch_spec.items() if n in found
    }
    encode = jax.jit(lambda v: backbone.vae.apply({"params": params["vae"]}, v, method="encode"))

    def alone(frames):
        video = np.moveaxis(frames.astype(np.float32) / 127.5 - 1, -1, 0)[None]
        return np.moveaxis(np.asarray(encode(video)[0]), 1, 2)[0]

    seen = plan.time.observed_frames
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for row in (0, 3):
        close(found["goal_latent"][row], alone(batch["goal_frame"][row]))
        for camera in range(2):
            video = batch["camera_frames"][row, camera]
            close(found["observed_camera_latents"][row, camera], alone(video[:seen]))
            close(found["target_camera_latents"][row, camera], alone(video))
    first = jax.jit(functools.partial(backbone.encode, time=plan.time))
    pair = first(params["vae"], batch["frames"])
    for latents, name in zip(pair, ("observed_latents", "target_latents"), strict=True):
        np.testing.assert_array_equal(latents, found[name])


def test_loss_has_the_velocity_error_of_all_cameras(config):
    plan = sketch(config)
    params, model, rng = make_params(plan), plan.model, jax.random.key(3)
    batch = random_batch(plan.encoded_task)
    loss, metrics = jax.jit(model.loss, static_argnames="rounds")(params, batch, rng, rounds=1)

    keys = jax.random.split(rng, 6)
    timesteps = jax.random.randint(keys[0], (4,), 0, 1000).at[:2].set(999)
    noise = jax.random.normal(keys[1], (4, plan.time.latents, *model.backbone.latent_shape))
    camera_noise = jax.random.normal(keys[4], (4, *model.camera_noise_shape))
    outputs, _ = jax.jit(
        lambda: model.predict(
            params, batch, timesteps=timesteps, noise=noise, camera_noise=camera_noise, rounds=1
        )
    )()
    alpha = model.schedule.alphas_cumprod[timesteps].reshape(4, 1, 1, 1, 1, 1)
    clean = batch["target_camera_latents"][:, :, plan.time.t_current :].astype(np.float64)
    velocity = np.sqrt(alpha) * np.asarray(camera_noise) - np.sqrt(1 - alpha) * clean
    camera = np.mean((np.asarray(outputs["camera_velocity"]) - velocity) ** 2)
    np.testing.assert_allclose(metrics["loss/camera"], camera, rtol=1e-5)
    total = metrics["loss/diffusion"] + metrics["loss/action"]
    total += 0.5 * camera + 0.25 * metrics["loss/proprio"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    # Noise of the cameras is none of the first one's.
    overlap = np.intersect1d(np.asarray(noise), np.asarray(camera_noise))
    assert len(overlap) < 10


def test_cameras_without_a_weight_need_no_later_frame(config):
    config.canvas.camera_weight = 0.0
    plan = sketch(config)
    assert "target_camera_latents" not in plan.model.latent_fields
    params = make_params(plan)
    batch = random_batch(plan.encoded_task)
    assert "target_camera_latents" not in batch
    loss = jax.jit(plan.model.loss, static_argnames="rounds")
    _, metrics = loss(params, batch, jax.random.key(0), rounds=1)
    assert "loss/camera" not in metrics and np.isfinite(float(metrics["loss/action"]))


@pytest.mark.parametrize("rounds", [1, 2])
def test_cells_of_views_cost_what_others_do(config, rounds):
    plan = sketch(config)
    trace = trace_step(plan.encoded_task, stored_parameters(plan.task), rounds=rounds)
    # Text; frames of 1 x 2 tokens: the video's 3, 3 of each camera, the goal; actions; states.
    cells = 1 + 2 * (3 + 2 * 3 + 1) + 4 + 4 + 3
    assert (
        sum(map(plan.model.module.layout.region_numel, plan.model.module.layout.regions)) == cells
    )
    tokens, width = 2 * TRANSFORMER.num_layers * rounds * 4 * cells, TRANSFORMER.width
    assert trace.parts["projections"] == (1 + 3 / 4 + 1) * tokens * 4 * width**2
    assert trace.parts["attention"] == (1 + 1 + 2) * tokens * 2 * cells * width
    assert trace.parts["feed-forward"] == (1 + 1 / 2 + 1) * tokens * 8 * width**2


@pytest.mark.parametrize("decoder", ["tokens", "tokens_diffused"])
def test_dimensions_that_a_robot_lacks_teach_nothing(config, decoder):
    config.decoder.kind = decoder
    model, task = robot(config, actions=5, proprio=4)
    plan = Sketch(config, model.time, model, task, SHARDING_RULES, ())
    params, batch = make_params(plan), random_batch(task)
    action_mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1], [0] * 5], np.float32)
    proprio_mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    for name in ("past_actions", "action_chunk"):
        batch[name] *= action_mask[:, None]
    for name in ("observed_proprio", "future_proprio"):
        batch[name] *= proprio_mask[:, None]
    masked = {**batch, "action_mask": action_mask, "proprio_mask": proprio_mask}
    outputs = {
        "actions": jax.random.normal(jax.random.key(0), (4, 4, 5)),
        "proprio": jax.random.normal(jax.random.key(1), (4, 1, 4)),
    }
    for stream, field, mask in (
        ("actions", "action_chunk", action_mask),
        ("proprio", "future_proprio", proprio_mask),
    ):
        error = (np.asarray(outputs[stream]) - batch[field]) ** 2
        expected = [e[:, m > 0].mean() if m.any() else 0 for e, m in zip(error, mask, strict=True)]
        found = stream_error(outputs[stream], masked, stream)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        plain = stream_error(outputs[stream], batch, stream)
        np.testing.assert_allclose(plain, error.mean(axis=(1, 2)), rtol=1e-5)
    value = jax.jit(jax.value_and_grad(model.loss, has_aux=True), static_argnums=3)
    (loss, _), grads = value(params, masked, jax.random.key(0), 1)
    if decoder == "tokens":
        # The same loss and gradients whatever lies in what is masked.
        fields = {"action_chunk": action_mask, "future_proprio": proprio_mask}
        other = {name: batch[name] + 5 * (1 - mask[:, None]) for name, mask in fields.items()}
        (changed, _), other_grads = value(params, masked | other, jax.random.key(0), 1)
        np.testing.assert_allclose(changed, loss, rtol=1e-6)
        same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(same, other_grads["graft"], grads["graft"])
    else:
        found = sampled(model, params, masked)
        for row, mask in enumerate(action_mask):
            np.testing.assert_array_equal(found[row][:, mask == 0], 0)
            assert (found[row][:, mask == 1] != 0).all()
    # What no row has moves no weight of the decoder that predicts it; what some row has does.
    nobody = {"action_mask": np.array([0, 1, 0, 1, 1]), "proprio_mask": np.array([1, 1, 0, 1])}
    hidden = {name: masked[name] * mask.astype(np.float32) for name, mask in nobody.items()}
    _, grads = value(params, masked | hidden, jax.random.key(0), 1)
    decoders = {"decoder": "action_mask", "future_proprio_decoder": "proprio_mask"}
    for name, mask in decoders.items():
        for gradient in grads["graft"][name]["out"].values():
            columns = np.abs(gradient).reshape(-1, len(nobody[mask])).max(axis=0)
            np.testing.assert_array_equal(columns > 0, nobody[mask] > 0, err_msg=name)


def robot(config, *, actions, proprio):
    """Model and task of a robot with other sizes, without its data."""
    backbone, time = sketch(config).model.backbone, sketch(config).time
    spec = dict(sketch(config).encoded_task.batch_spec)
    for name in ("past_actions", "action_chunk", "observed_proprio", "future_proprio"):
        size = actions if "action" in name else proprio
        spec[name] = ArraySpec((*spec[name].shape[:-1], size), spec[name].dtype)
    model = graft_model(config, backbone=backbone, time=time, batch_spec=spec)
    return model, graft_task(model, freeze=config.freeze, batch_spec=spec)


def sampled(model, params, batch):
    drawn = draws(model)
    drawn["action_noise"] = drawn["action_noise"][..., :5]
    sample = jax.jit(
        lambda batch: sample_actions(
            model, params, batch, timesteps=jnp.full(4, 999), **drawn, steps=STEPS, rounds=1
        )[0]["actions"]
    )
    return np.asarray(sample(batch))


def test_masked_actions_enter_as_zeros(config):
    model, task = robot(config, actions=5, proprio=4)
    mask = np.array([[1, 0, 1, 1, 0]] * 4, np.float32)
    chunk = random_batch(task)["action_chunk"] * mask[:, None]
    batch = {"action_chunk": chunk, "action_mask": mask}
    noised, velocity = noise_actions(model.schedule, batch, jax.random.key(0))
    for values in (noised.values, velocity):
        np.testing.assert_array_equal(np.asarray(values)[..., mask[0] == 0], 0)
    plain, _ = noise_actions(model.schedule, {"action_chunk": chunk}, jax.random.key(0))
    present = np.asarray(plain.values)[..., mask[0] == 1]
    np.testing.assert_array_equal(np.asarray(noised.values)[..., mask[0] == 1], present)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        (
            "data",
            "cameras",
            ("a", "b", "a"),
            r"data.cameras = \('a', 'b', 'a'\): expected at least",
        ),
        ("data", "cameras", (), r"data.cameras = \(\): expected at least one"),
        ("data", "cameras", ("a", "proprio"), "data.cameras has 'proprio' beside the first"),
        ("data", "cameras", ("a",), "canvas.camera_weight = 0.5 without a region"),
        ("canvas", "camera_weight", -1.0, "canvas.camera_weight = -1.0: expected a finite number"),
        ("data", "image_size", (16, 40), r"data.image_size = \(16, 40\): .* both a multiple of 16"),
        ("data", "image_size", (16,), r"data.image_size = \(16,\): expected \(height, width\)"),
        ("train", "task", "video", "data.cameras = .*: train.task = video learns one camera"),
        ("train", "task", "vae", "data.cameras = .*: train.task = vae learns one camera"),
    ],
)
def test_what_does_not_fit_is_refused(config, section, key, value, message):
    config[section][key] = value
    with pytest.raises(ValueError, match=message):
        sketch(config)


def test_views_that_nothing_reads_are_refused(config):
    config.decoder.kind, config.canvas.proprio = "pooled", False
    config.canvas.proprio_weight = config.canvas.camera_weight = 0.0
    with pytest.raises(ValueError, match="nothing reads the new regions: decoder.kind = 'pooled'"):
        sketch(config)
    config.data.cameras = ("image_0",)  # a goal is left
    with pytest.raises(ValueError, match="nothing reads the new regions"):
        sketch(config)
    config.data.goal = "none"
    sketch(config)


def test_frames_of_480_x_640_build_at_2b():
    config = load_config("configs/bridge_3loop.py")
    config.data.image_size, config.data.cameras = (480, 640), ("image_0", "image_1")
    config.canvas.camera_weight, config.data.goal = 1.0, "uniform"
    plan = sketch(config)
    assert plan.model.backbone.latent_shape == (16, 60, 80)
    spec = plan.task.batch_spec
    assert spec["frames"].shape[1:] == (17, 480, 640, 3)
    assert spec["camera_frames"].shape[1:] == (1, 17, 480, 640, 3)
    assert spec["goal_frame"].shape[1:] == (1, 480, 640, 3)
    shapes = jax.eval_shape(plan.task.init, jax.random.key(0))
    assert shapes["graft"]["future_image_1"]["modality"].shape == (1920,)
    model = plan.model.module

    def forward(params):
        f32, (observed, frames) = jnp.float32, (plan.time.t_current, plan.time.latents)
        data = {
            "past_action": jnp.zeros((1, 4, 7), f32),
            "goal": jnp.zeros((1, 1, 16, 60, 80), f32),
            "observed_image_1": jnp.zeros((1, observed, 16, 60, 80), f32),
            "future_image_1": jnp.zeros((1, frames - observed, 16, 60, 80), f32),
        }
        text = jnp.zeros((1, 226, 4096), f32)
        latents = jnp.zeros((1, frames, 16, 60, 80), f32)
        return model.apply({"params": params}, latents, text, jnp.zeros(1), data, rounds=1)[0]

    del shapes["vae"]
    outputs = jax.eval_shape(forward, shapes)
    assert outputs["velocity"].shape == (1, 5, 16, 60, 80)
    assert outputs["camera_velocity"].shape == (1, 1, 3, 16, 60, 80)
