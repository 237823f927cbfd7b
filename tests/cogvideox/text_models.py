"""A tokenizer of a few pieces and small random text encoders, in the folders of a model."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from flax import traverse_util

from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_names import text_encoder_names

SENTENCES = [
    "pick up the red cube and put it in the drawer",
    "close the drawer, then open the cabinet slowly!",
    "A panda plays a guitar in a naïve bamboo forest.",
    "put the spoon on the plate 123",
]
EXTRA_IDS = 100
SMALL = TextEncoderConfig(
    vocab_size=160, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=20,
)  # fmt: skip


def write_tokenizer(
    folder: pathlib.Path,
    *,
    config: dict | None = None,
    sentences: Sequence[str] = SENTENCES,
    most_pieces: int = 60,
) -> int:
    """Trains a SentencePiece model as T5's was; returns how many pieces it has."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * 8),
        model_prefix=str(folder / "spiece"),
        vocab_size=most_pieces,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    return model.get_piece_size()


def published_config(pieces: int) -> dict:
    """What CogVideoX-2B's tokenizer/tokenizer_config.json says, for so many pieces."""

    def token(content, *, strip):
        flags = {"lstrip": strip, "rstrip": strip, "normalized": False, "single_word": False}
        return {"content": content, "special": True, **flags}

    named = {i: token(name, strip=False) for i, name in enumerate(["<pad>", "</s>", "<unk>"])}
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    named |= {
        pieces + EXTRA_IDS - 1 - i: token(name, strip=True) for i, name in enumerate(extra)
    }  # fmt: skip
    return {
        "add_prefix_space": True,
        "added_tokens_decoder": {str(i): token for i, token in named.items()},
        "additional_special_tokens": extra,
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": EXTRA_IDS,
        "legacy": True,
        "model_max_length": 226,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }


def random_encoder(config: TextEncoderConfig, *, seed: int = 0):
    """A transformers model in which no parameter has a special value, norms included."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.T5EncoderModel(transformers.T5Config(**config.to_json())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def text_params(config: TextEncoderConfig, state: dict[str, np.ndarray]):
    """Our tree, from the state of transformers' model."""
    flat = {}
    for name in text_encoder_names(config):
        layers = [name.to_ours(state[key]) for key in name.keys]
        flat[name.target] = np.stack(layers) if name.stacked else layers[0]
    return traverse_util.unflatten_dict(flat, sep="/")


def write_text_parts(folder: pathlib.Path) -> pathlib.Path:
    """A diffusers directory with a text encoder, stored in float16, and its tokenizer."""
    pieces = write_tokenizer(folder / "tokenizer")
    config = published_config(pieces)
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    random_encoder(SMALL).half().save_pretrained(folder / "text_encoder")
    return folder


def their_embeddings(folder: pathlib.Path, prompts: list[str], *, length: int = 226) -> np.ndarray:
    """What diffusers' pipeline makes of prompts, in float32."""
    import torch
    import transformers

    tokenizer = transformers.T5Tokenizer.from_pretrained(folder / "tokenizer")
    encoder = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder").float()
    ids = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True,
        add_special_tokens=True, return_tensors="pt",
    ).input_ids  # fmt: skip
    with torch.no_grad():
        return encoder(ids)[0].numpy()
