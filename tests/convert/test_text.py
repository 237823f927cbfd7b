"""`python -m convert text`: a file of embeddings, as the published pipeline makes them."""

import json

import numpy as np
import pytest
from absl import logging

from convert.text import write_embeddings
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.data.text import TextEmbeddings
from tests.cogvideox.text_models import SENTENCES, SMALL, their_embeddings, write_text_parts

WITHOUT_TORCH = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "diffusers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
from convert.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("transformers")
    return write_text_parts(tmp_path_factory.mktemp("text") / "diffusers")


@pytest.fixture(scope="module")
def model(source):
    import_diffusers(source, source.parent / "converted")
    return source.parent / "converted"


@pytest.fixture
def prompts(tmp_path):
    """A file with a line a sentence, an empty line and a line that is too long."""
    lines = [*SENTENCES, "", "cube " * 300]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


def test_the_file_holds_the_pipelines_embeddings(source, model, tmp_path, prompts, caplog):
    out = tmp_path / "out.safetensors"
    with caplog.at_level("WARNING", logger=logging.get_absl_logger().name):
        shape = write_embeddings(model, tmp_path / "prompts.txt", out, dtype="float32")
    assert shape == (6, 226, SMALL.d_model)
    (record,) = caplog.records
    assert "of the prompt 'cube cube" in record.getMessage()
    assert record.getMessage().endswith("cube cube cube'")

    read = TextEmbeddings(out)
    expected = their_embeddings(source, prompts)
    assert np.abs(expected).mean() > 0.3
    for prompt, embedding in zip(prompts, expected, strict=True):
        np.testing.assert_allclose(read[prompt], embedding, rtol=2**-10, atol=1e-5)


def test_bfloat16_compute_is_near(source, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("close the drawer\n")
    out = tmp_path / "out.safetensors"
    write_embeddings(model, tmp_path / "prompts.txt", out, dtype="bfloat16")
    expected = their_embeddings(source, ["close the drawer"])[0]
    error = np.abs(TextEmbeddings(out)["close the drawer"] - expected).max()
    assert 1e-3 < error < 0.3


def test_nothing_half_written_is_left(model, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    monkeypatch.setattr(
        "roam_jax.cogvideox.prompts.encode_by_layers",
        lambda encoder, params, ids: np.full((*ids.shape, SMALL.d_model), 1e5, np.float32),
    )
    with pytest.raises(ValueError, match=r"prompts.txt:1: the embedding has 100000.0, beyond"):
        write_embeddings(
            model, tmp_path / "prompts.txt", tmp_path / "out.safetensors", dtype="float32"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def run(model, tmp_path, *extra):
    argv = ["text", "--model", str(model), "--prompts", str(tmp_path / "prompts.txt")]
    return [*argv, "--out", str(tmp_path / "out.safetensors"), *extra]


def test_prompts_are_lines_whatever_ends_them(model, tmp_path):
    """A byte order mark and Windows' line ends are no text; other spaces are."""
    out = tmp_path / "out.safetensors"
    text = "\ufeffopen\r\n\r\n close\x0bit \u2028\nx\ry"
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    shape = write_embeddings(model, tmp_path / "prompts.txt", out, dtype="float32")
    read, expected = TextEmbeddings(out), ("open", "", " close\x0bit \u2028", "x\ry")
    assert shape[0] == len(expected)
    assert all(read[prompt].shape == shape[1:] for prompt in expected)


def test_faults_are_named_where_a_user_meets_them(source, model, tmp_path):
    from convert.__main__ import main

    (tmp_path / "prompts.txt").write_text("")
    with pytest.raises(ValueError, match=r"prompts.txt: empty, expected one prompt a line"):
        main(run(model, tmp_path))
    (tmp_path / "prompts.txt").write_bytes(b"a\nb \xff\n")
    with pytest.raises(ValueError, match=r"prompts.txt:2: no UTF-8 text: .* byte 0xff in position"):
        main(run(model, tmp_path))
    (tmp_path / "prompts.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match="`python -m convert import --src DIFFUSERS_DIR"):
        main(run(source, tmp_path))
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match="out.safetensors exists: remove it, or choose"):
        main(run(model, tmp_path))
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_the_command_needs_no_torch(model, tmp_path, prompts):
    """Run where torch, transformers and diffusers cannot be imported."""
    import subprocess
    import sys

    argv = [sys.executable, "-c", WITHOUT_TORCH, *run(model, tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "embeddings (6, 226, 24) float16" in done.stdout
    assert "its end is cut" in done.stderr
    listed = json.loads(_metadata(tmp_path / "out.safetensors")["prompts"])
    assert listed == prompts


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return file.metadata()
