"""Token ids against transformers' T5 tokenizer, and the rule by which prompts are cut."""

import json
import random

import numpy as np
import pytest

from roam_jax.cogvideox.tokenizer import Tokenizer
from tests.cogvideox.text_models import SENTENCES, published_config, write_tokenizer

PROMPTS = [
    *SENTENCES,
    "",
    "   ",
    "pick   up\tthe\r\ncube  ",
    "日本語 cube, 한국어 😀",
    "ﬁne ①② \uff21\uff22\uff23\u3000\uff44",
    "pick\u00a0up\u200bthe\u3000red\u00ad \ufeff\u2028x",
    "e\u0301 é naïve",
    "a\x07b\x00c",
    "▁cube ▁ x",
    "<extra_id_0>",
    "pick <extra_id_0> up<extra_id_99>it<extra_id_100> <extra_id_1",
    "  <extra_id_1>  <extra_id_12> ",
    "a</s>b <pad> <unk>q</s></s>",
    "cube " * 300,
    "x" * 300,
]
CONFIGS = {
    "no config": None,
    "no extra ids": {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"},
    "published": "published",
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    pieces = write_tokenizer(root)
    config = CONFIGS[request.param]
    if config == "published":
        config = published_config(pieces)
    if config is not None:
        (root / "tokenizer_config.json").write_text(json.dumps(config))
    return root


@pytest.fixture
def plain(tmp_path):
    """A tokenizer that a test may break."""
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def random_prompts(count: int) -> list[str]:
    rng = random.Random(0)
    letters = "pickuptheredcub ,.!\t\n  éü日▁<>/s\u200b\u3000①ﬁ\xa0\x07\x1f\ufeff\u2028한カñИ😀"
    return ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(count)]


@pytest.mark.parametrize("length", [226, 20])
def test_ids_equal_transformers(transformers, folder, length):
    """As diffusers' pipeline calls its T5Tokenizer."""
    theirs = transformers.T5Tokenizer.from_pretrained(folder)
    ours = Tokenizer(folder)
    assert ours.size == len(theirs)
    prompts = PROMPTS + random_prompts(200)
    expected = theirs(
        prompts, padding="max_length", max_length=length, truncation=True, add_special_tokens=True
    ).input_ids
    for prompt, ids in zip(prompts, expected, strict=True):
        found = ours.encode(prompt, length).ids
        assert found.dtype == np.int32
        assert found.tolist() == ids, repr(prompt)
    assert any(ids[-1] == 1 for ids in expected), "no prompt was cut"


def test_what_transformers_saves_anew_is_read(transformers, folder, tmp_path):
    """tokenizer.json without spiece.model."""
    transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "spiece.model").exists()
    old, new = Tokenizer(folder), Tokenizer(tmp_path / "saved")
    assert old.size == new.size
    for prompt in PROMPTS + random_prompts(50):
        np.testing.assert_array_equal(old.encode(prompt).ids, new.encode(prompt).ids)


def test_the_end_of_a_long_prompt_is_cut_and_shown(transformers, plain):
    theirs = transformers.T5Tokenizer.from_pretrained(plain)
    prompt = "pick up the red cube and put it in the drawer <extra_id_7>"
    ids = theirs(prompt).input_ids
    ours = Tokenizer(plain)
    for length in range(1, len(ids)):
        tokens = ours.encode(prompt, length)
        assert tokens.ids.tolist() == [*ids[: length - 1], 1]
        # What diffusers' pipeline decodes for its warning.
        removed = theirs.decode(ids[length - 1 : -1], clean_up_tokenization_spaces=False)
        assert tokens.cut == removed
    whole = ours.encode(prompt, len(ids))
    assert whole.cut == "" and whole.ids.tolist() == ids
    assert ours.encode(prompt, len(ids) + 2).ids.tolist() == [*ids, 0, 0]


def test_cut_text_keeps_what_has_no_piece(plain):
    assert Tokenizer(plain).encode("cube 日本語 drawer", 5).cut.endswith("日本語 drawer")


def test_what_is_no_t5_tokenizer_is_refused(plain, tmp_path):
    with pytest.raises(ValueError, match="length = 0: expected 1 or more tokens"):
        Tokenizer(plain).encode("a", 0)

    (plain / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ValueError, match="tokenizer_class = 'LlamaTokenizer': expected T5Tokenize"):
        Tokenizer(plain)
    (plain / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer_config.json: expected the JSON of a tokenizer"):
        Tokenizer(plain)
    (plain / "tokenizer_config.json").unlink()

    model = (plain / "spiece.model").read_bytes()
    (plain / "spiece.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(ValueError, match="spiece.model: not a SentencePiece model"):
        Tokenizer(plain)
    (plain / "spiece.model").unlink()
    with pytest.raises(FileNotFoundError, match="no spiece.model and no tokenizer.json"):
        Tokenizer(plain)
    (plain / "tokenizer.json").write_text('{"model": {"type": "BPE"}, "normalizer": {"type": "N"}}')
    with pytest.raises(ValueError, match=r"not T5's tokenizer: .*\('BPE', 'N'\), expected"):
        Tokenizer(plain)


def test_a_config_of_no_tokens_is_refused(plain):
    def refuse(message, **config):
        (plain / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"tokenizer_config.json: {message}"):
            Tokenizer(plain)

    refuse(r"tokenizer_class = \['a'\]: expected T5Tokenizer", tokenizer_class=["a"])
    for count in ("5", None, -5, True):
        refuse(f"extra_ids = {count!r}: expected a number of tokens", extra_ids=count)
    refuse(r"added_tokens_decoder = \[1\]: expected an object", added_tokens_decoder=[1])
    good = {"content": "a"}
    for id_, token in [("3", "a"), ("x", good), ("-3", good), ("3", {}), ("3", {"content": ""})]:
        message = f"added_tokens_decoder: {id_!r} = {token!r}: expected an id, 0 or more, and a tok"
        refuse(message, added_tokens_decoder={id_: token})


def test_other_special_ids_are_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 8), model_prefix=str(tmp_path / "spiece"),
        vocab_size=60, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"not T5's: ids \(-1, 2, 0\) of padding, end and unknown"):
        Tokenizer(tmp_path)
