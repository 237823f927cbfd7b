"""Opening converted checkpoints: mapped parameters, fingerprints, files that do not belong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.load import fingerprint, load_transformer, load_vae
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.cogvideox.vae import VAE
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names
from tests.cogvideox.diffusers_models import TINY, random_params

SMALL_VAE = VAEConfig(
    block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, temporal_compression_ratio=2
)


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture
def converted(params, tmp_path):
    """Both networks, the transformer in float16."""
    vae = random_params(SMALL_VAE, vae_names)
    save_diffusers(
        tmp_path / "src", transformer=(TINY, params), vae=(SMALL_VAE, vae), dtype=np.float16
    )
    import_diffusers(tmp_path / "src", tmp_path / "dst")
    return tmp_path / "dst"


def test_parameters_are_mapped_and_keep_their_dtype(converted, params):
    module, loaded = load_transformer(converted)
    assert module == Transformer(TINY, jnp.float32)
    expected = jax.tree.map(lambda x: x.astype(np.float16), params)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (loaded, expected)), strict=True):
        assert isinstance(ours, np.ndarray) and not ours.flags.owndata
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(ours, theirs)


def test_vae(converted):
    module, loaded = load_vae(converted, dtype=jnp.bfloat16)
    assert module == VAE(SMALL_VAE, jnp.bfloat16)
    assert loaded["encoder"]["conv_in"]["kernel"].shape == (3, 3, 3, 3, 8)


def test_fingerprint_follows_the_weights_only(converted, params, tmp_path):
    first = fingerprint(converted / "transformer")
    assert len(first) == 32 and first != fingerprint(converted / "vae")
    for name, change in (("same", 0), ("other", 2**-10)):
        changed = jax.tree.map(np.copy, params)
        changed["proj_out"]["bias"][3] += change
        save_diffusers(tmp_path / name, transformer=(TINY, changed), dtype=np.float16)
        import_diffusers(tmp_path / name, tmp_path / f"{name}-dst")
    assert fingerprint(tmp_path / "same-dst" / "transformer") == first
    assert fingerprint(tmp_path / "other-dst" / "transformer") != first


def test_folders_that_were_not_converted_are_refused(tmp_path):
    message = "transformer: no manifest.json with weights.safetensors; `python -m convert import"
    with pytest.raises(FileNotFoundError, match=message):
        load_transformer(tmp_path)


def test_damage_is_named(converted):
    weights = converted / "transformer" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"has {len(content) - 1} bytes, its manifest says"):
        load_transformer(converted)
    weights.write_bytes(content)

    config = converted / "transformer" / "config.json"
    sizes = json.loads(config.read_text())
    config.write_text(json.dumps(sizes | {"num_layers": 4}))
    message = r"blocks/attn1/norm_k/bias has \(3, 16\), expected \(4, 16\)"
    with pytest.raises(ValueError, match=message):
        load_transformer(converted)

    manifest = converted / "transformer" / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(ValueError, match=r"manifest.json: no manifest of this version"):
        load_transformer(converted)
