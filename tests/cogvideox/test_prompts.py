"""Prompts to embeddings in a converted folder, against transformers."""

import shutil

import numpy as np
import pytest
from absl import logging

from roam_jax.cogvideox import prompts as module
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.prompts import PromptEncoder, encode_prompts
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.text_models import (
    SENTENCES,
    SMALL,
    their_embeddings,
    write_text_parts,
    write_tokenizer,
)

LONG = "pick up the cube " * 60


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    pytest.importorskip("transformers")
    return write_text_parts(tmp_path_factory.mktemp("text") / "diffusers")


@pytest.fixture(scope="module")
def folder(source):
    import_diffusers(source, source.parent / "converted")
    return source.parent / "converted"


def test_embeddings_equal_the_published_pipelines(source, folder):
    prompts = [*SENTENCES, "", LONG]
    ours = encode_prompts(folder, prompts)
    assert ours.shape == (6, 226, SMALL.d_model) and ours.dtype == np.float32
    assert relative_error(ours, their_embeddings(source, prompts)) <= 1e-6


def test_groups_keep_the_order(source, folder, monkeypatch):
    monkeypatch.setattr(module, "_GROUP", 2)
    prompts = [*SENTENCES, ""]
    ours = encode_prompts(folder, prompts, length=9)
    assert ours.shape == (5, 9, SMALL.d_model)
    assert relative_error(ours, their_embeddings(source, prompts, length=9)) <= 1e-6


def test_what_is_cut_is_shown(folder, caplog):
    with caplog.at_level("WARNING", logger=logging.get_absl_logger().name):
        list(PromptEncoder(folder, length=8).encode(["cube", "put it in the drawer slowly"]))
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(
        "a prompt is longer than 8 tokens, its end is cut: of the prompt 'put"
    )
    assert message.endswith("drawer slowly'")


def test_parts_that_are_missing_or_strange_are_named(source, folder, tmp_path):
    with pytest.raises(ValueError, match=r"prompts = \[\]: expected at least one prompt"):
        encode_prompts(folder, [])
    with pytest.raises(FileNotFoundError, match="python -m convert import"):
        encode_prompts(source, ["a"])
    broken = tmp_path / "converted"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(FileNotFoundError, match="tokenizer: no spiece.model"):
        encode_prompts(broken, ["a"])
    pieces = write_tokenizer(broken / "tokenizer", config={"extra_ids": 200})
    message = f"the tokenizer has {pieces + 200} ids, the text encoder 160: they are not of one"
    with pytest.raises(ValueError, match=message):
        encode_prompts(broken, ["a"])
