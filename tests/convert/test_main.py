"""The commands: exit codes, one message, nothing half-written; text against the T5 encoder."""

import json

import numpy as np
import pytest

from convert.__main__ import main
from roam_jax.cogvideox.load import fingerprint
from roam_jax.cogvideox.save import save_diffusers
from roam_jax.data.dataset import EpisodeReader
from tests.cogvideox.diffusers_models import TINY, random_params
from tests.data import rlds

PROMPTS = ["pick up the red cube", "", "close the drawer"]


def test_import(tmp_path, capsys):
    save_diffusers(tmp_path / "src", transformer=(TINY, random_params(TINY)), dtype=np.float16)
    argv = ["import", "--src", str(tmp_path / "src"), "--dst", str(tmp_path / "dst")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "parameters in 88 tensors (88 float16)" in printed
    assert fingerprint(tmp_path / "dst" / "transformer") in printed

    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("convert import: ") and captured.err.count("\n") == 1
    assert "dst exists" in captured.err


@pytest.mark.parametrize("argv", [["import", "--help"], ["text", "--help"]])
def test_help_has_an_example(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0
    assert f"example: python -m convert {argv[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["import"], ["export"]])
def test_bad_usage_is_not_success(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: python -m convert" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random two-layer T5 and a tokenizer in the format of CogVideoX: a sentencepiece model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("t5")
    (folder / "tokenizer").mkdir()
    prefix = folder / "tokenizer" / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 4), model_prefix=str(prefix), vocab_size=28,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=28, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


def text(model, tmp_path, prompts):
    (tmp_path / "prompts.txt").write_text(prompts)
    argv = ["text", "--model", str(model), "--prompts", str(tmp_path / "prompts.txt")]
    return main([*argv, "--out", str(tmp_path / "out.safetensors")])


def test_text_equals_the_encoder(model, tmp_path):
    """As diffusers' pipeline calls it: padded to 226 tokens, no attention mask."""
    import torch
    from safetensors import safe_open
    from transformers import T5EncoderModel, T5Tokenizer

    assert text(model, tmp_path, "\n".join(PROMPTS) + "\n") == 0
    with safe_open(tmp_path / "out.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["prompts"]) == PROMPTS
        embeddings = file.get_tensor("embeddings")
    tokenizer = T5Tokenizer.from_pretrained(model / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(model / "text_encoder")
    ids = tokenizer(
        PROMPTS, padding="max_length", max_length=226, truncation=True, return_tensors="pt"
    ).input_ids
    assert ids[1].tolist() == [1] + [0] * 225
    with torch.no_grad():
        expected = encoder(ids)[0].numpy()
    assert embeddings.shape == (3, 226, 24) and embeddings.dtype == np.float16
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(embeddings).mean() > 0.1


@pytest.mark.parametrize(
    "prompts, message",
    [
        ("fine\n" + "cube " * 300, "prompts.txt:2: "),
        ("", "prompts.txt: empty, expected one prompt a line"),
    ],
)
def test_text_refuses_what_it_would_cut(model, tmp_path, capsys, prompts, message):
    assert text(model, tmp_path, prompts) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_text_names_what_is_missing(model, tmp_path, capsys):
    assert text(tmp_path, tmp_path, "a") == 1
    assert "expected a folder tokenizer in it" in capsys.readouterr().err
    (tmp_path / "out.safetensors").write_text("mine")
    assert text(model, tmp_path, "a") == 1
    assert "out.safetensors exists" in capsys.readouterr().err


def test_prompts_are_the_distinct_instructions_of_both_splits(tmp_path, robot_root, capsys):
    out = tmp_path / "prompts.txt"
    assert main(["prompts", "--data", str(robot_root), "--out", str(out)]) == 0
    found = out.read_text(encoding="utf-8").splitlines()
    readers = [EpisodeReader(robot_root, split) for split in ("train", "val")]
    assert found == sorted(
        {reader[i].header.instruction for reader in readers for i in range(len(reader))}
    )
    assert main(["prompts", "--data", str(robot_root), "--out", str(out)]) != 0
    assert "exists" in capsys.readouterr().err


def test_prompts_of_a_dataset_with_a_declaration(tmp_path, capsys):
    """Other names of splits, cameras and instructions."""
    episodes = [rlds.StoredEpisode.random(seed, 3) for seed in range(3)]
    for episode, text in zip(episodes, ("open", "close", "open"), strict=True):
        episode.instruction = text
    splits = {"train": episodes[:1], "held_out": episodes[1:]}
    root = rlds.write_dataset(tmp_path / "1.0.0", splits)
    (tmp_path / "toy.py").write_text(
        "from roam_jax.data.declaration import DatasetDeclaration, Stored\n"
        "STATE = 'steps/observation/state'\n"
        "DATASET = DatasetDeclaration(name='toy', rate=5.0, splits=('train', 'held_out'),\n"
        "    cameras={'front': 'steps/observation/image_0'},\n"
        "    instruction='steps/language_instruction',\n"
        "    state=(Stored(('x',), STATE, columns=(0,)),),\n"
        "    action=(Stored(('x',), 'steps/action', columns=(0,)),))\n"
    )
    out = tmp_path / "prompts.txt"
    argv = ["prompts", "--data", str(root), "--out", str(out)]
    assert main(argv) == 1  # Bridge's validation split is not there
    assert "val" in capsys.readouterr().err and not out.exists()
    assert main([*argv, "--declaration", str(tmp_path / "toy.py")]) == 0
    assert out.read_text().splitlines() == ["close", "open"]
