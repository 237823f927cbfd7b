"""`convert verify`: right conversions pass, wrong ones are named, each with its exit code."""

import json
import math
import pathlib
import re
import shutil

import ml_dtypes
import numpy as np
import pytest

from convert.__main__ import main
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.mapped import create_tensors, open_tensors
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names
from tests.cogvideox.diffusers_models import TINY, random_params, random_transformer
from tests.convert.pipelines import write_pipeline

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from convert.verify import BOUNDS, Row, table, verify

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "roam_jax" / "assets" / "tiny_cogvideox"
ONE_LEVEL = VAEConfig(
    block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, temporal_compression_ratio=1
)
WRONG = {
    "time_embedding": "time_embedding.linear_1.bias",
    "patch_embed": "patch_embed.proj.weight",
    "transformer_blocks.1": "transformer_blocks.1.ff.net.2.weight",
    "norm_final": "norm_final.weight",
}
# A bias of the keys moves all scores of a query alike, so that no output shows it.
UNSEEN = "transformer_blocks.0.attn1.norm_k.bias"


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """A transformer that diffusers wrote in float16, in shards."""
    folder = tmp_path_factory.mktemp("verify") / "src"
    model = random_transformer(TINY).half()
    model.save_pretrained(folder / "transformer", max_shard_size="100kB")
    return folder


def command(*argv):
    main(["verify", *map(str, argv)])


def lines(text):
    """First column of the printed table -> the others."""
    cells = [re.split(r"  +", line) for line in text.splitlines()]
    return {first: rest for first, *rest in cells if len(rest) == 5}


def test_the_packaged_weights_pass(capsys):
    """Both networks; every module of the transformer has its line or shares one."""
    command("--src", ASSETS)
    printed = capsys.readouterr().out
    found = lines(printed)
    assert "all 446 comparisons are within their bounds" in printed
    assert found.pop("module")[-1] == "ok"
    assert {cells[-1] for cells in found.values()} == {"yes"}
    assert found["transformer: 160 stored tensors (equal)"][1:] == ["0", "0", "0", "yes"]
    assert found["vae: 244 stored tensors (equal)"][1:] == ["0", "0", "0", "yes"]
    assert found["transformer.patch_embed"][0] == "2x97x128"
    assert found["vae.decode"][0] == "1x3x17x32x40"
    assert len(found) == 27
    assert 0 < float(found["transformer.velocity"][1]) < BOUNDS["transformer"]


def test_every_module_is_compared(src, capsys):
    """With errors of float32, not 0: the two sides are two computations."""
    with pytest.raises(ValueError, match="of 97 comparisons are beyond their bounds"):
        command("--src", src, "--bound", "1e-12")
    found = lines(capsys.readouterr().out)
    assert found["transformer: 88 stored tensors (equal)"][-1] == "yes"
    beyond = {
        name.removeprefix("transformer.").split(" (")[0]: cells
        for name, cells in found.items()
        if cells[-1] == "NO"
    }
    assert beyond.keys() >= WRONG.keys() | {"transformer_blocks.2", "norm_out", "velocity"}
    assert all(cells[-2] == "1.0e-12" and float(cells[1]) < 2e-6 for cells in beyond.values())
    assert sum("(worst of 3)" in name for name in found) == 1


def test_wrong_tensors_are_found(src, tmp_path, capsys):
    """They are named, and so are their modules alone: those after them get the right inputs."""
    model = random_transformer(TINY)
    for name in (*WRONG.values(), UNSEEN):
        model.get_parameter(name).data.flatten()[7] += 0.5
    model.half().save_pretrained(tmp_path / "changed" / "transformer")
    import_diffusers(tmp_path / "changed", tmp_path / "dst")
    with pytest.raises(ValueError, match="^10 of 97 comparisons are beyond their bounds$"):
        command("--src", src, "--dst", tmp_path / "dst")
    captured = capsys.readouterr()
    bad = {
        name.removeprefix("transformer.").split(" (")[0]: float(cells[1])
        for name, cells in lines(captured.out).items()
        if cells[-1] == "NO"
    }
    assert bad.keys() == {*WRONG, *WRONG.values(), UNSEEN, "velocity"}
    assert min(bad.values()) > 1e-4


def test_a_vae_alone_and_in_bfloat16(tmp_path):
    params = random_params(ONE_LEVEL, vae_names)
    save_diffusers(tmp_path / "src", vae=(ONE_LEVEL, params), dtype=ml_dtypes.bfloat16)
    params["decoder"]["up_blocks_0"]["resnets_1"]["norm2"]["conv_y"]["kernel"][0, 0, 0, 1] += 1
    save_diffusers(tmp_path / "changed", vae=(ONE_LEVEL, params), dtype=ml_dtypes.bfloat16)
    import_diffusers(tmp_path / "changed", tmp_path / "dst")
    rows = verify(tmp_path / "src", tmp_path / "dst")
    assert {row.module for row in rows if not row.ok} == {
        "vae.decoder.up_blocks.0.resnets.1.norm2.conv_y.conv.weight",
        "vae.decoder.up_blocks.0.resnets.1",
        "vae.decode",
    }
    assert lines(table(rows))["vae.decoder.up_blocks.0.resnets.1 (worst of 2)"][-1] == "NO"


def test_not_a_number_is_never_within_a_bound():
    good = Row("blocks", "blocks.0", "2x3", 1e-3, 0.1, 1.0)
    bad = Row("blocks", "blocks.1", "2x3", math.nan, math.nan, 1.0)
    assert good.ok and not bad.ok
    assert lines(table([good, bad, good])).keys() == {"module", "blocks.1 (worst of 3)"}


def test_a_conversion_of_another_model_is_refused(src, tmp_path):
    import_diffusers(src, tmp_path / "dst")
    config = tmp_path / "dst" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 1e-3}))
    message = f"no conversion of {src / 'transformer'}: norm_eps = 0.001, not 1e-05"
    with pytest.raises(ValueError, match=message):
        command("--src", src, "--dst", tmp_path / "dst")


def test_other_directories_are_refused(src, tmp_path, capsys):
    def refused(message, src, *dst, error=ValueError):
        with pytest.raises(error, match=message):
            command("--src", src, *dst)
        assert capsys.readouterr().out == ""

    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refused("model_index.json: this is a StableDiffusionPipeline, expected", tmp_path)
    message = "no manifest.json with weights.safetensors"
    refused(message, src, "--dst", tmp_path, error=FileNotFoundError)
    lacking = tmp_path / "lacking" / "transformer"
    save_diffusers(tmp_path / "lacking", transformer=(TINY, random_params(TINY)))
    import_diffusers(tmp_path / "lacking", tmp_path / "dst")
    (lacking / "config.json").write_text(json.dumps(TINY.to_json() | {"num_layers": 4}))
    refused("24 missing: ", tmp_path / "lacking", "--dst", tmp_path / "dst")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A text encoder with its tokenizer and scheduler."""
    folder = write_pipeline(tmp_path_factory.mktemp("text") / "src")
    for name in ("transformer", "vae"):
        shutil.rmtree(folder / name)
    return folder


def test_a_text_encoder_and_copied_files(pipeline, capsys):
    command("--src", pipeline)
    found = lines(capsys.readouterr().out)
    assert found["text_encoder: 21 stored tensors (equal)"][-1] == "yes"
    assert found["text_encoder.encoder.block.0.relative_attention_bias"][0] == "3x226x226"
    blocks = [cells for name, cells in found.items() if "encoder.block" in name and "worst" in name]
    assert 0 < float(blocks[0][1]) < 1e-6
    assert 0 < float(found["text_encoder.embeddings"][1]) < BOUNDS["text_encoder"]
    assert found["tokenizer: copied files (equal)"][-1] == "yes"


def test_a_wrong_text_encoder_is_found(pipeline, tmp_path, capsys):
    """The module alone and the whole; a file that is not the same; and one that is not there."""
    import_diffusers(pipeline, tmp_path / "dst")
    weights = tmp_path / "dst" / "text_encoder" / "weights.safetensors"
    changed = {key: np.array(x) for key, x in open_tensors(weights).items()}
    changed["layers/ff/wi_1/kernel"][1] *= 1.01
    changed["relative_attention_bias/embedding"][20] += 0.1
    with create_tensors(weights, {n: (x.shape, x.dtype) for n, x in changed.items()}) as views:
        for name, tensor in changed.items():
            views[name][...] = tensor
    (tmp_path / "dst" / "tokenizer" / "spiece.model").write_bytes(b"other")
    (tmp_path / "dst" / "tokenizer" / "tokenizer_config.json").unlink()
    rows = verify(pipeline, tmp_path / "dst")
    assert {row.module for row in rows if not row.ok} == {
        "text_encoder.encoder.block.1.layer.1.DenseReluDense.wi_1.weight",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "text_encoder.encoder.block.0.relative_attention_bias",
        "text_encoder.encoder.block.1",
        "text_encoder.embeddings",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
    }
