"""The file of text embeddings: lookup, and what is said when it does not fit."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from roam_jax.data.text import TextEmbeddings

PROMPTS = ["put carrot on plate", "", "turn lever"]


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float16)


def write(path, embeddings, prompts=PROMPTS):
    save_file({"embeddings": embeddings}, path, metadata={"prompts": json.dumps(prompts)})
    return path


def test_lookup_by_prompt(tmp_path, embeddings):
    text = TextEmbeddings(write(tmp_path / "text.safetensors", embeddings))
    assert (text.tokens, text.width) == (5, 6)
    for row in (2, 0, 1):
        found = text[PROMPTS[row]]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, embeddings[row].astype(np.float32))


def test_all_missing_prompts_and_the_command_are_named(tmp_path, embeddings):
    text = TextEmbeddings(write(tmp_path / "text.safetensors", embeddings))
    text.require(PROMPTS)
    with pytest.raises(
        ValueError, match=r"2 instructions, such as \['a', 'b'\]; .*-m convert text"
    ) as error:
        text.require(["b", "turn lever", "a", "b"])
    assert f"--out {tmp_path / 'text.safetensors'}" in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no text embeddings; .*-m convert text"):
        TextEmbeddings(tmp_path / "text.safetensors")


def test_other_files_are_refused(tmp_path, embeddings):
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        TextEmbeddings(path)
    save_file({"embeddings": embeddings}, path)
    with pytest.raises(ValueError, match="'prompts'"):
        TextEmbeddings(path)
    save_file({"other": embeddings}, path, metadata={"prompts": json.dumps(PROMPTS)})
    with pytest.raises(ValueError, match="'embeddings'"):
        TextEmbeddings(path)
    write(path, embeddings, PROMPTS[:2])
    with pytest.raises(ValueError, match=r"shape \(3, 5, 6\) for 2 prompts"):
        TextEmbeddings(path)
