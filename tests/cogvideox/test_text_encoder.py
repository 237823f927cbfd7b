"""The text encoder against transformers: lengths, buckets, widths, stored and computed dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_encoder import TextEncoder, encode_by_layers, relative_buckets
from roam_jax.cogvideox.text_names import text_encoder_names
from tests.cogvideox.diffusers_models import relative_error, state
from tests.cogvideox.text_models import SMALL, random_encoder, text_params

WIDE = dataclasses.replace(
    SMALL,
    num_heads=4,
    num_layers=3,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-2,
)


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=[SMALL, WIDE], ids=["inner 16 < 24", "inner 32 > 24"])
def encoder(request, torch):
    """Config, transformers' model and our parameters."""
    model = random_encoder(request.param)
    return request.param, model, text_params(request.param, state(model))


def token_ids(length: int, *, rows: int = 2) -> np.ndarray:
    rng = np.random.default_rng(length)
    return rng.integers(0, SMALL.vocab_size, (rows, length)).astype(np.int32)


def expected(torch, model, ids: np.ndarray) -> np.ndarray:
    """As the published pipeline calls it: without a mask."""
    with torch.no_grad():
        return model(torch.tensor(ids.astype(np.int64)))[0].numpy()


@pytest.mark.parametrize("length", [1, 7, 226])
def test_parity(torch, encoder, length):
    config, model, params = encoder
    ids = token_ids(length)
    theirs = expected(torch, model, ids)
    assert np.abs(theirs).mean() > 0.3
    ours = jax.jit(TextEncoder(config).apply)({"params": params}, ids)
    assert ours.dtype == np.float32
    assert relative_error(ours, theirs) <= 1e-6
    by_layers = encode_by_layers(TextEncoder(config), params, ids)
    assert relative_error(by_layers, theirs) <= 1e-6


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_half_precision_storage_costs_nothing(torch, encoder, stored):
    """The stored values are computed with in float32, on both sides."""
    config, _, params = encoder
    half = jax.tree.map(lambda x: x.astype(jnp.dtype(stored)), params)
    model = random_encoder(config).to(getattr(torch, stored)).float()
    ids = token_ids(9)
    theirs = expected(torch, model, ids)
    ours = jax.jit(TextEncoder(config).apply)({"params": half}, ids)
    assert relative_error(ours, theirs) <= 1e-6
    assert relative_error(encode_by_layers(TextEncoder(config), half, ids), theirs) <= 1e-6


@pytest.mark.parametrize("dtype, bound", [(jnp.bfloat16, 2e-2), (jnp.float16, 3e-3)])
def test_half_precision_compute(torch, encoder, dtype, bound):
    config, model, params = encoder
    ids = token_ids(9)
    ours = jax.jit(TextEncoder(config, dtype).apply)({"params": params}, ids)
    assert ours.dtype == np.float32
    assert bound / 100 < relative_error(ours, expected(torch, model, ids)) < bound
    by_layers = encode_by_layers(TextEncoder(config, dtype), params, ids)
    assert relative_error(by_layers, ours) < bound


def test_a_stream_beyond_float16_survives_float16_compute(torch):
    """T5-XXL's residual stream is; transformers clamps it, which is not what was trained."""
    model = random_encoder(SMALL)
    with torch.no_grad():
        model.shared.weight *= 1e5
    ids = token_ids(5)
    params = text_params(SMALL, state(model))
    ours = jax.jit(TextEncoder(SMALL, jnp.float16).apply)({"params": params}, ids)
    assert relative_error(ours, expected(torch, model, ids)) < 3e-3


@pytest.mark.parametrize(
    "buckets, farthest", [(32, 128), (8, 20), (4, 2), (16, 128), (64, 100), (20, 33)]
)
def test_buckets(torch, buckets, farthest):
    """Up to distances where everything is in the last bucket."""
    from transformers.models.t5.modeling_t5 import T5Attention

    positions = torch.arange(1200)
    theirs = T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], True, buckets, farthest
    )
    ours = relative_buckets(1200, buckets=buckets, farthest=farthest)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_buckets_by_hand():
    """Half of the 8 rows for keys before; distances 0, 1, 2 to 3, from 4 on; farthest is 5."""
    ours = relative_buckets(6, buckets=8, farthest=5)
    np.testing.assert_array_equal(ours[0], [0, 5, 6, 6, 7, 7])
    np.testing.assert_array_equal(ours[:, 0], [0, 1, 2, 2, 3, 3])


def test_the_tree_is_the_published_one():
    ids = jax.ShapeDtypeStruct((1, 3), np.int32)
    tree = jax.eval_shape(TextEncoder().init, jax.random.key(0), ids)["params"]
    flat, _ = jax.tree.flatten_with_path(tree)
    shapes = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in flat}
    names = text_encoder_names(TextEncoderConfig())
    assert shapes == {name.target: name.target_shape for name in names}


def test_stored_halves_are_promoted_a_layer_at_a_time():
    """Temporaries do not grow with the depth."""

    def temporaries(layers: int) -> int:
        config = dataclasses.replace(SMALL, d_model=64, d_ff=256, num_layers=layers)
        ids = jax.ShapeDtypeStruct((1, 4), np.int32)
        params = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), ids)
        half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float16), params)
        compiled = jax.jit(TextEncoder(config).apply).lower(half, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layer = 4 * (4 * 64 * 16 + 3 * 64 * 256)
    assert temporaries(12) - temporaries(2) < layer / 4
