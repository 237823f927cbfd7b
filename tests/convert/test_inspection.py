"""`convert inspect`: every tensor is listed with its place, and nothing is passed over."""

import json
import math
import shutil
import struct
import time

import jax
import numpy as np
import pytest

from convert import inspection
from convert.__main__ import main
from roam_jax.cogvideox.components import COMPONENTS
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.mapped import create_tensors, open_tensors
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_names import text_encoder_names
from tests.cogvideox.diffusers_models import TINY, random_params

TEXT = TextEncoderConfig(vocab_size=30, d_model=24, d_kv=8, d_ff=32, num_layers=4, num_heads=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "src"
    save_diffusers(
        folder,
        transformer=(TINY, random_params(TINY)),
        text_encoder=(TEXT, random_params(TEXT, text_encoder_names)),
        dtype=np.float16,
    )
    return folder


@pytest.fixture
def src(original, tmp_path):
    return shutil.copytree(original, tmp_path / "src")


def write(path, tensors):
    with create_tensors(path, {n: (x.shape, x.dtype) for n, x in tensors.items()}) as views:
        for name, tensor in tensors.items():
            views[name][...] = tensor


def shown(capsys, *argv):
    """Columns of each line, by its first one."""
    main(["inspect", *map(str, argv)])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if line}


def test_a_diffusers_directory(src, capsys):
    (src / "README.md").write_text("mine")
    found = shown(capsys, src)
    assert found["transformer_blocks.{0..2}.attn1.to_q.weight"] == [
        "3 x 48x48", "float16", "13,824", "blocks/attn1/to_q/kernel[{0..2}]"
    ]  # fmt: skip
    assert found["shared.weight"] == ["30x24", "float16", "1,440", "token_embedding/embedding"]
    assert found["encoder.block.{0..3}.layer.1.DenseReluDense.wi_{0..1}.weight"][:3] == [
        "8 x 32x24", "float16", "12,288"
    ]  # fmt: skip
    numbers = sum(x.size for x in jax.tree.leaves(random_params(TINY)))
    totals = f"88 tensors (88 float16), {numbers:,} parameters, {2 * numbers:,} bytes, 0 left over"
    assert totals in found
    assert "not read: README.md" in found
    assert "127 tensors, " in list(found)[-1]
    every = shown(capsys, src, "--all")
    assert every["transformer_blocks.1.attn1.to_q.weight"] == [
        "48x48", "float16", "4,608", "blocks/attn1/to_q/kernel[1]"
    ]  # fmt: skip
    keys = [t.key for part in inspection.inspect(src) for t in part.tensors]
    assert len(keys) == 127 and set(keys) <= every.keys()


def test_a_converted_folder(src, tmp_path, capsys):
    import_diffusers(src, tmp_path / "dst")
    found = shown(capsys, tmp_path / "dst")
    assert found["blocks/attn1/to_q/kernel"] == [
        "3x48x48", "float16", "13,824", "transformer_blocks.{0..2}.attn1.to_q.weight"
    ]  # fmt: skip
    assert shown(capsys, tmp_path / "dst" / "text_encoder")["norm/scale"][-1] == (
        "encoder.final_layer_norm.weight"
    )


def test_what_is_wrong_is_listed_and_no_success(src, capsys):
    path = src / "text_encoder" / "model.safetensors"
    tensors = {key: np.array(x) for key, x in open_tensors(path).items()}
    tensors["extra.weight"] = tensors.pop("encoder.final_layer_norm.weight")
    tensors["shared.weight"] = np.zeros((31, 24), np.float16)
    tensors["encoder.embed_tokens.weight"] = np.zeros((31, 24), np.float16)
    write(path, tensors)
    message = (
        r"src: not all is accounted for: MISSING encoder.final_layer_norm.weight \(24,\); "
        r"MISSHAPEN shared.weight has \(31, 24\), expected \(30, 24\); LEFT OVER extra.weight$"
    )
    with pytest.raises(ValueError, match=message):
        main(["inspect", str(src)])
    printed = capsys.readouterr().out
    assert "copy of shared.weight" in printed and "LEFT OVER" in printed
    assert "1 left over" in printed and "MISSING encoder.final_layer_norm.weight" in printed


def refuse(path, message, *, error=ValueError):
    with pytest.raises(error, match=message):
        main(["inspect", str(path)])


def test_what_import_refuses_is_no_success(src, tmp_path, capsys):
    """Other dtypes, two in one stack; converted folders with a manifest that does not fit."""
    path = src / "text_encoder" / "model.safetensors"
    tensors = {key: np.array(x) for key, x in open_tensors(path).items()}
    key = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    write(path, tensors | {key: tensors[key].astype(np.float32)})
    stack = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    refuse(src, f"for: DTYPES of {stack} .*: float16, float32, expected one$")
    content = path.read_bytes().replace(b'"F32"', b'"I32"')
    path.write_bytes(content)
    refuse(src, f"DTYPE {key} is I32, expected float16, bfloat16, float32; DTYPES of ")
    write(path, tensors)
    import_diffusers(src, tmp_path / "dst")
    manifest = tmp_path / "dst" / "text_encoder" / "manifest.json"
    manifest.write_text("{")
    refuse(tmp_path / "dst", "for: MANIFEST .*manifest.json: no manifest of this version")
    manifest.unlink()
    refuse(tmp_path / "dst", "for: MANIFEST .*text_encoder: no manifest.json with weights.safetens")
    assert "39 tensors" in capsys.readouterr().out  # they are listed all the same


def test_tensors_of_no_part_are_left_over(src):
    (src / "image_encoder").mkdir()
    write(src / "image_encoder" / "model.safetensors", {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="not all is accounted for: LEFT OVER w$"):
        main(["inspect", str(src)])


def test_damaged_and_other_files_are_named(src, tmp_path):
    path = src / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="model.safetensors: ends early"):
        main(["inspect", str(src)])
    (src / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="model_index.json: this is a FluxPipeline"):
        main(["inspect", str(src)])
    with pytest.raises(FileNotFoundError, match="text_encoder in it, found nothing"):
        (tmp_path / "empty").mkdir()
        main(["inspect", str(tmp_path / "empty")])


def test_single_files(src, tmp_path, capsys):
    found = shown(capsys, src / "text_encoder" / "model.safetensors")
    assert found["shared.weight"][-1] == "token_embedding/embedding"
    lone = shutil.copy(src / "text_encoder" / "model.safetensors", tmp_path / "lone.safetensors")
    assert shown(capsys, lone).keys() >= {"shared.weight", "encoder.final_layer_norm.weight"}
    write(tmp_path / "text.safetensors", {"embeddings": np.zeros((2, 5, 3), np.float16)})
    assert shown(capsys, tmp_path / "text.safetensors")["embeddings"][-1] == "data.text"
    write(tmp_path / "other.safetensors", {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="LEFT OVER w"):
        main(["inspect", str(tmp_path / "other.safetensors")])


def test_exports_of_a_graft(ce_run, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    (workdir, trained), names = ce_run, {"model": "out", "base+loops": "base", "ce": "x.pt"}
    for form, name in names.items():
        dst = str(tmp_path / name)
        main(["export", "--workdir", str(workdir), "--dst", dst, "--as", form])
    capsys.readouterr()
    assert trained.keys() <= shown(capsys, tmp_path / "out").keys()
    found = shown(capsys, tmp_path / "base")
    assert trained.keys() <= found.keys() and "proj_out.weight" in found
    found = shown(capsys, tmp_path / "x.pt")
    assert found["loop_blocks.block_{0..1}.loop_emb"] == [
        "2 x 2x32", "float32", "512", "blocks/loop/video[{0..1}]"
    ]  # fmt: skip
    assert found["action_head.net.2.bias"][-1] == "graft/decoder/out/bias"
    refuse(workdir, f"{workdir}: this is a run; `python -m convert export --workdir {workdir} ")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    state["loop_blocks"]["block_1"]["loop_gate"] = torch.zeros(2, 3)
    torch.save(state, tmp_path / "y.pt")
    refuse(tmp_path / "y.pt", r"REFUSED .*block_1.loop_gate has shape \(2, 3\), expected \(2, 1\)")
    (tmp_path / "out" / "statistics.json").unlink()
    with pytest.raises(FileNotFoundError, match="statistics.json: no such file"):
        main(["inspect", str(tmp_path / "out")])


def test_the_published_sizes_take_no_time(tmp_path):
    """Empty files of 15 GB: whoever read a tensor would read zeros for a long while."""
    for name, component in COMPONENTS.items():
        (tmp_path / name).mkdir()
        config = component.config()
        component.write_config(tmp_path / name, config)
        header, end = {}, 0
        for place in component.names(config):
            for key in place.keys:
                begin, end = end, end + 2 * math.prod(place.shape)
                header[key] = {"dtype": "F16", "shape": place.shape, "data_offsets": (begin, end)}
        text = json.dumps(header).encode()
        with (tmp_path / name / component.weights_file).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)  # sparse
    began = time.monotonic()
    parts = inspection.inspect(tmp_path)
    tables = [inspection.table(part, every_key=False) for part in parts]
    assert time.monotonic() - began < 1
    assert sum(t.header.bytes for part in parts for t in part.tensors) == 2 * (
        1_693_783_872 + 215_583_907 + 4_762_310_656
    )
    assert not any(part.problems or part.left_over for part in parts)
    assert "30 x 1920x1920" in tables[0] and len(tables[0].splitlines()) < 60
