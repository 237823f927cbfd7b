"""The transformer against diffusers, module by module, and its exact size."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.segments import SegmentTable
from roam_jax.cogvideox import block as port
from roam_jax.cogvideox import embedding
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import condition
from roam_jax.cogvideox.names import target_shapes, transformer_names
from roam_jax.cogvideox.transformer import AdaNormOut, Transformer
from tests.cogvideox.diffusers_models import (
    TINY,
    our_params,
    relative_error,
    state,
)

PARITY = 1e-6
# Shared, so that tests at the same sizes compile once.
APPLY = jax.jit(Transformer(TINY).apply)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "transformer.npz"


@pytest.fixture(scope="module")
def params(model):
    return our_params(TINY, state(model))


def normal(*shape, seed=0, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 1, shape).astype(np.float32)


@jax.jit
def value_and_gradients(params, latents, text, timesteps, cotangent):
    """Velocity, and the gradient of its product with `cotangent`."""

    def loss(params):
        velocity = Transformer(TINY).apply({"params": params}, latents, text, timesteps)
        return (velocity * cotangent).sum(), velocity

    gradients, velocity = jax.grad(loss, has_aux=True)(params)
    return velocity, gradients


def layer(params, index):
    """Parameters of one block."""
    return jax.tree.map(lambda stack: stack[index], params["blocks"])


def inputs(frames, height, width):
    """Latents, text and timesteps of three rows."""
    latents, text = normal(3, frames, 16, height, width), normal(3, 5, 24, seed=1)
    return latents, text, np.array([0, 500, 999])


@pytest.mark.parametrize("size", [(3, 6, 10), (1, 2, 2), (2, 10, 6), (5, 4, 14)], ids=str)
def test_whole_model(torch, model, params, size):
    """At the trained size and at odd ones, where positions are recomputed; each timestep apart."""
    latents, text, timesteps = inputs(*size)
    with torch.no_grad():
        expected = model(*map(torch.tensor, (latents, text, timesteps))).sample.numpy()
    ours = APPLY({"params": params}, latents, text, timesteps)
    for row in range(3):
        assert relative_error(ours[row], expected[row]) <= PARITY


def test_equal_timesteps_of_all_frames_reproduce_one_a_row(params):
    latents, text, timesteps = inputs(3, 6, 10)
    expected = APPLY({"params": params}, latents, text, timesteps)
    frames = np.repeat(timesteps[:, None], 3, axis=1)
    assert relative_error(APPLY({"params": params}, latents, text, frames), expected) <= PARITY
    frames[0, 1] = 700
    changed = APPLY({"params": params}, latents, text, frames)
    assert relative_error(changed[0], expected[0]) > 1e-3
    assert relative_error(changed[1:], expected[1:]) <= PARITY


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_timesteps_than_of_frames_is_refused(count):
    """What a call without run-time type checks would meet."""
    embed, cells = embedding.TimeEmbedding(TINY), np.repeat(np.arange(3), 2)
    message = rf"timesteps have shape \(3, {count}\), expected \(batch,\), or \(batch, 3\)"
    with pytest.raises(ValueError, match=message):
        condition(embed, jnp.zeros((3, count), jnp.int32), cells)


def test_patches_and_positions(torch, model, params):
    module = embedding.PatchEmbed(TINY)
    for size in [(3, 6, 10), (2, 4, 8)]:
        latents, text, _ = inputs(*size)
        with torch.no_grad():
            expected = model.patch_embed(torch.tensor(text), torch.tensor(latents)).numpy()
        variables = {"params": params["patch_embed"]}
        text_tokens, video_tokens = module.apply(variables, jnp.array(latents), jnp.array(text))
        assert relative_error(text_tokens, expected[:, :5]) <= PARITY
        assert relative_error(video_tokens, expected[:, 5:]) <= PARITY


@pytest.mark.parametrize("scales", [(1.875, 1.0), (1.0, 0.7)])
def test_positions_equal_diffusers(torch, scales):
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    spatial, temporal = scales
    config = dataclasses.replace(
        TINY, spatial_interpolation_scale=spatial, temporal_interpolation_scale=temporal
    )
    expected = get_3d_sincos_pos_embed(48, (7, 3), 4, spatial, temporal).numpy()
    time, rows, columns = embedding.position_tables(config, frames=4, height=3, width=7)
    shape = (4, 3, 7)
    parts = time[:, None, None], columns[None, None], rows[None, :, None]
    ours = np.concatenate([np.broadcast_to(x, (*shape, x.shape[-1])) for x in parts], axis=-1)
    np.testing.assert_allclose(ours.reshape(4, 21, 48), expected, rtol=0, atol=1e-7)


def test_time_embedding(torch, model, params):
    timesteps = np.array([0, 1, 10, 500, 998, 999])
    with torch.no_grad():
        waves = model.time_proj(torch.tensor(timesteps))
        expected = model.time_embedding(waves).numpy()
    module, variables = embedding.TimeEmbedding(TINY), {"params": params["time_embedding"]}
    ours = module.apply(variables, jnp.array(timesteps))
    for row in range(len(timesteps)):
        # Half an ulp of an angle of up to 999 is 3e-5, which some builds of torch round otherwise.
        assert relative_error(ours[row], expected[row]) <= 1e-5
    by_frame = module.apply(variables, jnp.array(timesteps.reshape(2, 3)))
    np.testing.assert_array_equal(by_frame.reshape(ours.shape), ours)


def test_timestep_frequencies_at_2b_width():
    """Correctly rounded, against the exact power of ten thousand."""
    exact = 10000.0 ** -(np.arange(960) / 960)
    ours = embedding.timestep_frequencies(1920)
    # The exponent is rounded to float32 first, as in diffusers: half an ulp of up to 9.2.
    np.testing.assert_allclose(ours, exact, rtol=1e-6)
    assert ours[0] == 1


@pytest.mark.parametrize("offset", [0.0, 300.0], ids=["centred", "large mean"])
def test_modulated_norms(torch, model, params, offset):
    """A large mean tells the two-pass variance from the cancelling one."""
    text, video = normal(2, 5, 48, offset=offset), normal(2, 9, 48, seed=1, offset=offset)
    temb = normal(2, 32, seed=2)
    with torch.no_grad():
        norm = model.transformer_blocks[1].norm1
        expected = [x.numpy() for x in norm(*map(torch.tensor, (video, text, temb)))]
        out = model.norm_out(torch.tensor(video), temb=torch.tensor(temb)).numpy()
    (own_text, own_video), text_gate, gate = port.AdaNorm(TINY).apply(
        {"params": layer(params, 1)["norm1"]}, *map(jnp.array, (text, video, temb))
    )
    ours = [own_video, own_text, gate, text_gate]
    # torch and XLA sum in different orders; a mean of 300 makes one rounding 300 times larger.
    bound = PARITY * max(1, offset / 10)
    for mine, theirs in zip(ours, expected, strict=True):
        assert relative_error(mine, theirs) <= bound
    module, variables = AdaNormOut(TINY), {"params": params["norm_out"]}
    ours = module.apply(variables, jnp.array(video), jnp.array(temb))
    assert relative_error(ours, out) <= bound


def test_attention(torch, model, params):
    text, video = normal(2, 5, 48), normal(2, 9, 48, seed=1)
    with torch.no_grad():
        attend = model.transformer_blocks[2].attn1
        expected = attend(torch.tensor(video), encoder_hidden_states=torch.tensor(text))
    tokens = jnp.concatenate([text, video], axis=1)
    ours = port.JointAttention(TINY).apply({"params": layer(params, 2)["attn1"]}, tokens)
    assert relative_error(ours[:, 5:], expected[0].numpy()) <= PARITY
    assert relative_error(ours[:, :5], expected[1].numpy()) <= PARITY


def test_block(torch, model, params):
    text, video, temb = normal(2, 5, 48), normal(2, 9, 48, seed=1), normal(2, 32, seed=2)
    with torch.no_grad():
        block = model.transformer_blocks[0]
        expected = [x.numpy() for x in block(*map(torch.tensor, (video, text, temb)))]
    ours = port.Block(TINY).apply(
        {"params": layer(params, 0)}, *map(jnp.array, (text, video, temb))
    )
    assert relative_error(ours[1], expected[0]) <= PARITY
    assert relative_error(ours[0], expected[1]) <= PARITY


def test_block_under_a_topology(torch, model, params):
    """Three more cells that read everything and that neither stream reads."""
    text, video, temb = normal(2, 5, 48), normal(2, 12, 48, seed=1), normal(2, 32, seed=2)
    segments = np.repeat([0, 1], [14, 3]).astype(np.int32)
    weights = np.array([[0, -np.inf], [0, 0]], np.float32)
    table = SegmentTable(segments, weights)
    mask = torch.tensor(np.where(table.mask(), 0, -np.inf).astype(np.float32))
    with torch.no_grad():
        expected = model.transformer_blocks[0](
            *map(torch.tensor, (video, text, temb)),
            attention_kwargs={"attention_mask": mask.expand(2 * 3, 17, 17)},
        )
    module, variables = port.Block(TINY), {"params": layer(params, 0)}
    arrays = [jnp.array(x) for x in (text, video, temb)]
    plan = AttentionPlan(table, None, (), np.ones((1, 2)))
    ours = module.apply(variables, *arrays, port.JointCells(plan))
    assert relative_error(ours[1], expected[0].numpy()) <= PARITY
    assert relative_error(ours[0], expected[1].numpy()) <= PARITY
    without = module.apply(variables, arrays[0], arrays[1][:, :9], arrays[2])
    assert relative_error(ours[1][:, :9], without[1]) <= PARITY


def test_gradients(torch, model, params):
    """Of every parameter, from one scalar."""
    latents, text, timesteps = inputs(3, 6, 10)
    cotangent = normal(*latents.shape, seed=3)
    model.zero_grad()
    sample = model(*map(torch.tensor, (latents, text, timesteps))).sample
    (sample * torch.tensor(cotangent)).sum().backward()
    expected = {key: tensor.grad.numpy() for key, tensor in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    _, ours = value_and_gradients(params, latents, text, timesteps, cotangent)
    ours = traverse_util.flatten_dict(ours, sep="/")
    for name in transformer_names(TINY):
        for key, gradient in name.to_theirs(np.asarray(ours[name.target])).items():
            if key.endswith("norm_k.bias"):
                # It moves all scores of a query alike: the gradient is 0, and rounding is left.
                assert max(np.abs(gradient).max(), np.abs(expected[key]).max()) < 1e-5
            else:
                assert relative_error(gradient, expected[key]) <= 1e-5, key


@pytest.mark.exact
def test_float16_storage(torch, params):
    """Weights stay float16 and compute is float32: the result is that of the rounded weights."""
    halves = jax.tree.map(lambda x: x.astype(np.float16), params)
    floats = jax.tree.map(lambda x: x.astype(np.float32), halves)
    ours, expected = (APPLY({"params": tree}, *inputs(1, 2, 2)) for tree in (halves, floats))
    assert ours.dtype == jnp.float32
    assert relative_error(ours, expected) <= 1e-7


def test_half_precision_stacks_are_never_promoted_whole():
    """Temporary memory does not grow with the depth."""

    def temporary_bytes(depth):
        config = dataclasses.replace(TINY, num_layers=depth, attention_head_dim=64)
        shapes = target_shapes(transformer_names(config))
        flat = {name: jax.ShapeDtypeStruct(shape, jnp.float16) for name, shape in shapes.items()}
        params = traverse_util.unflatten_dict(flat, sep="/")
        shapes = [(1, 1, 16, 4, 4), (1, 5, 24)]
        latents, text = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
        apply = jax.jit(Transformer(config).apply)
        lowered = apply.lower({"params": params}, latents, text, timesteps)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # One block of this width is 2.6 MB in float32.
    assert temporary_bytes(16) - temporary_bytes(4) < 1e6


def test_bfloat16_compute_is_close(params):
    module = Transformer(TINY, dtype=jnp.bfloat16)
    exact, ours = (f({"params": params}, *inputs(1, 2, 2)) for f in (APPLY, jax.jit(module.apply)))
    assert ours.dtype == jnp.float32
    assert relative_error(ours, exact) < 0.05


def test_golden():
    """diffusers' output, stored for where torch is missing (tests/golden/make.py)."""
    stored = np.load(GOLDEN)
    tensors = {key.removeprefix("weights/"): stored[key] for key in stored if "weights/" in key}
    config = TransformerConfig(**{k: v.item() for k, v in _group(stored, "config/").items()})
    params = our_params(config, tensors)
    assert tensors["proj_out.weight"].dtype == np.float16
    arrays = (jnp.array(stored[key]) for key in ("latents", "text", "timesteps"))
    ours = jax.jit(Transformer(config).apply)({"params": params}, *arrays)
    for row in range(len(ours)):
        assert relative_error(ours[row], stored["velocity"][row]) <= PARITY


def _group(stored, prefix):
    return {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}


def test_2b_counts():
    """The tree of the real size, without allocating it."""
    config = TransformerConfig()
    shapes = [(1, 3, 16, 60, 90), (1, 226, 4096)]
    latents, text = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    timesteps = jax.ShapeDtypeStruct((1,), jnp.int32)
    module, arrays = Transformer(config), (latents, text, timesteps)
    variables = jax.eval_shape(module.init, jax.random.key(0), *arrays)
    tree = variables["params"]
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in tree.items()}
    assert counts == {
        "patch_embed": 7_991_040,
        "time_embedding": 1_246_208,
        "blocks": 30 * 56_081_536,
        "norm_final": 3_840,
        "norm_out": 1_973_760,
        "proj_out": 122_944,
    }
    assert sum(counts.values()) == 1_693_783_872
    flat = traverse_util.flatten_dict(tree, sep="/")
    names = transformer_names(config)
    assert {name: x.shape for name, x in flat.items()} == target_shapes(names)
    assert sum(len(name.keys) for name in names) == 736
    assert jax.eval_shape(module.apply, variables, *arrays).shape == latents.shape


def test_fresh_weights_train():
    """A fresh model predicts small values, and every parameter has a gradient at the first step."""
    arrays = inputs(3, 6, 10)
    # This generator compiles ten times faster than the default one.
    key = jax.random.key(0, impl="unsafe_rbg")
    params = jax.jit(Transformer(TINY).init)(key, *arrays)["params"]
    velocity, gradients = value_and_gradients(params, *arrays, arrays[0])
    assert 1e-3 < velocity.std() < 0.5
    for name, gradient in traverse_util.flatten_dict(gradients, sep="/").items():
        assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize(
    "latents, text, message",
    [
        ((1, 2, 16, 4, 6), (1, 6, 24), r"text embeddings have shape \(1, 6, 24\)"),
        ((1, 2, 16, 4, 6), (1, 5, 25), r"expected \(batch, 5, 24\)"),
        ((1, 2, 16, 5, 6), (1, 5, 24), r"latents have shape \(1, 2, 16, 5, 6\)"),
        ((1, 2, 4, 4, 6), (1, 5, 24), r"expected \(batch, frames, 16, height, width\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(latents, text, message):
    arrays = jnp.zeros(latents), jnp.zeros(text), jnp.zeros(1)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Transformer(TINY).init, jax.random.key(0), *arrays)
