"""Export to diffusers directories: diffusers loads them, and import gives the same bits back."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.load import load_transformer
from roam_jax.cogvideox.save import save_diffusers
from tests.cogvideox.diffusers_models import TINY, random_params, relative_error, state


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_import_gives_the_same_bits_back(params, tmp_path, dtype):
    typed = jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), params)
    save_diffusers(tmp_path / "src", transformer=(TINY, typed))
    import_diffusers(tmp_path / "src", tmp_path / "dst")
    module, loaded = load_transformer(tmp_path / "dst")
    assert module.config == TINY
    assert jax.tree.structure(loaded) == jax.tree.structure(typed)
    for ours, theirs in zip(*map(jax.tree.leaves, (loaded, typed)), strict=True):
        assert ours.dtype == dtype and ours.tobytes() == np.asarray(theirs).tobytes()


def test_diffusers_loads_it(params, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    save_diffusers(tmp_path / "out", transformer=(TINY, params))
    model = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        tmp_path / "out", subfolder="transformer", low_cpu_mem_usage=False
    )
    np.testing.assert_array_equal(
        state(model)["transformer_blocks.2.ff.net.0.proj.weight"],
        params["blocks"]["ff"]["up"]["kernel"][2].T,
    )
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((1, 2, 16, 4, 6), np.float32), np.ones((1, 5, 24), np.float32)
    with torch.no_grad():
        expected = model(*map(torch.tensor, arrays), torch.tensor([500])).sample.numpy()
    import_diffusers(tmp_path / "out", tmp_path / "dst")
    module, loaded = load_transformer(tmp_path / "dst")
    ours = jax.jit(module.apply)({"params": loaded}, *arrays, np.array([500]))
    assert relative_error(ours, expected) <= 1e-6


def test_cast_rounds_to_nearest(params, tmp_path):
    save_diffusers(tmp_path / "src", transformer=(TINY, params), dtype=np.float16)
    import_diffusers(tmp_path / "src", tmp_path / "dst")
    _, loaded = load_transformer(tmp_path / "dst")
    np.testing.assert_array_equal(
        loaded["proj_out"]["kernel"], params["proj_out"]["kernel"].astype(np.float16)
    )


def test_misfits_are_refused_and_nothing_is_left(params, tmp_path):
    changed = {**params, "graft": {"x": np.zeros(1)}}
    message = "parameters of transformer: .* 1 unexpected: graft/x"
    with pytest.raises(ValueError, match=message):
        save_diffusers(tmp_path / "out", transformer=(TINY, changed))
    with pytest.raises(ValueError, match="expected transformer, vae or text_encoder"):
        save_diffusers(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
