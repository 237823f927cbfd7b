"""Import of the text encoder, tokenizer and scheduler of a diffusers directory."""

import json

import jax
import numpy as np
import pytest

from roam_jax.cogvideox.importing import companion_files, import_diffusers
from roam_jax.cogvideox.load import load_text_encoder
from roam_jax.cogvideox.mapped import create_tensors, open_tensors
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_names import text_encoder_names
from tests.cogvideox.diffusers_models import random_params, relative_error

CONFIG = TextEncoderConfig(
    vocab_size=30, d_model=24, d_kv=8, d_ff=32, num_layers=3, num_heads=2
)  # fmt: skip
ORIGINAL, COPY = "shared.weight", "encoder.embed_tokens.weight"


@pytest.fixture
def src(tmp_path):
    """Its text encoder, with what stands beside it."""
    params = random_params(CONFIG, text_encoder_names)
    save_diffusers(tmp_path / "src", text_encoder=(CONFIG, params), dtype=np.float16)
    (tmp_path / "src" / "tokenizer").mkdir()
    (tmp_path / "src" / "tokenizer" / "spiece.model").write_bytes(b"\x00any bytes\xff")
    (tmp_path / "src" / "scheduler").mkdir()
    (tmp_path / "src" / "scheduler" / "scheduler_config.json").write_text('{"steps":  7}')
    return tmp_path / "src"


def rewrite(src, change):
    path = src / "text_encoder" / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in open_tensors(path).items()}
    change(tensors)
    with create_tensors(path, {n: (x.shape, x.dtype) for n, x in tensors.items()}) as views:
        for name, tensor in tensors.items():
            views[name][...] = tensor


def test_values_and_files_are_kept(src, tmp_path):
    found = import_diffusers(src, tmp_path / "dst")
    assert found.keys() == {"text_encoder"}
    assert found["text_encoder"].tensors == 30 and found["text_encoder"].dtypes == {"float16": 30}
    tensors = open_tensors(src / "text_encoder" / "model.safetensors")
    parameters = open_tensors(tmp_path / "dst" / "text_encoder" / "weights.safetensors")
    for name in text_encoder_names(CONFIG):
        for key, ours in name.to_theirs(parameters[name.target]).items():
            assert ours.dtype == np.float16
            np.testing.assert_array_equal(ours, tensors.pop(key), err_msg=key)
    assert not tensors
    assert {str(path) for path in companion_files(tmp_path / "dst")} == {
        "tokenizer/spiece.model", "scheduler/scheduler_config.json",
    }  # fmt: skip
    for path in companion_files(src):
        assert (tmp_path / "dst" / path).read_bytes() == (src / path).read_bytes()


def test_it_loads_and_equals_transformers(src, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    import_diffusers(src, tmp_path / "dst")
    module, params = load_text_encoder(tmp_path / "dst", dtype=np.float32)
    assert module.config == CONFIG
    theirs = transformers.T5EncoderModel.from_pretrained(src / "text_encoder", dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 30, (2, 40), np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    ours = jax.jit(module.apply)({"params": params}, ids)
    assert relative_error(ours, expected) <= 2e-6


def test_tied_copies_must_be_copies(src, tmp_path):
    whole = import_diffusers(src, tmp_path / "whole")
    rewrite(src, lambda tensors: tensors.update({COPY: tensors[ORIGINAL]}))
    assert import_diffusers(src, tmp_path / "copy") == whole
    rewrite(src, lambda tensors: tensors.pop(ORIGINAL))
    assert import_diffusers(src, tmp_path / "alone") == whole

    def differ(tensors):
        tensors[ORIGINAL] = tensors[COPY].copy()
        tensors[ORIGINAL][3, 5] += 1

    rewrite(src, differ)
    message = f"text_encoder: {COPY} differs from {ORIGINAL}, expected a copy of it"
    with pytest.raises(ValueError, match=message):
        import_diffusers(src, tmp_path / "other")
    rewrite(src, lambda t: t.update({ORIGINAL: t[COPY].astype(np.float32)}))
    with pytest.raises(ValueError, match=message):
        import_diffusers(src, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_shard_that_is_cut_short_is_named(src, tmp_path):
    folder, files = src / "text_encoder", {}
    whole = import_diffusers(src, tmp_path / "whole")
    tensors = open_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, keys in enumerate((sorted(tensors)[:10], sorted(tensors)[10:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        specs = {key: (tensors[key].shape, tensors[key].dtype) for key in keys}
        with create_tensors(folder / name, specs) as views:
            for key in keys:
                views[key][...] = tensors[key]
        files |= dict.fromkeys(keys, name)
    index = {"weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert import_diffusers(src, tmp_path / "shards") == whole
    last = folder / "model-00002-of-00002.safetensors"
    content = last.read_bytes()
    for size in (len(content) - 7, 100, 3):
        last.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{last.name}: .*it has {size} bytes"):
            import_diffusers(src, tmp_path / "cut")
        assert not (tmp_path / "cut").exists()


def test_another_text_encoder_is_refused(src, tmp_path):
    config = src / "text_encoder" / "config.json"
    values = json.loads(config.read_text()) | {"feed_forward_proj": "relu"}
    config.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="text_encoder/config.json: this is T5 v1.0"):
        import_diffusers(src, tmp_path / "dst")


def test_a_scheduler_without_its_file_is_refused(src, tmp_path):
    (src / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json: no such file, the noise"):
        import_diffusers(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
