"""T5's tokenizer (SentencePiece, Kudo & Richardson 2018), from the files of a model directory.

Gives the ids that transformers' `T5Tokenizer` gives: text is split at special tokens first, as
`<extra_id_0>`, and what lies between them is SentencePiece's. Prompts are padded, and cut where
they are too long, as the published CogVideoX pipeline does it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece
from jaxtyping import Int

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.tokenizer_json import sentencepiece_model

MODEL_FILE = "spiece.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PAD, EOS, UNKNOWN = 0, 1, 2
TEXT_TOKENS = TransformerConfig.max_text_seq_length
_CLASSES = ("T5Tokenizer", "T5TokenizerFast")
# What T5Tokenizer takes where its config does not say.
_EXTRA_IDS = 100
# How a piece writes the space before it.
_SPACE = "▁"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """One prompt.

    Args:
        ids: token ids, the end of the text at their end, then padding.
        cut: the end of the prompt that found no place; "" where all of it did.
    """

    ids: Int[np.ndarray, " S"]
    cut: str


class Tokenizer:
    """Prompts -> token ids.

    Args:
        folder: holds `spiece.model`, or the `tokenizer.json` that transformers 5 saves, and
            `tokenizer_config.json` where special tokens differ from T5's own.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a file does not parse, or is of another tokenizer.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = pathlib.Path(folder)
        self._pieces = _open_pieces(folder)
        config = folder / CONFIG_FILE
        self._special = _special_tokens(self._pieces, _read_config(config), where=config)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._pieces.get_piece_size(), 1 + max(self._special.values()))

    def encode(self, prompt: str, length: int = TEXT_TOKENS) -> Tokens:
        """Exactly `length` ids of a prompt.

        A prompt that is too long keeps its first `length` - 1 tokens, then the end of the text;
        `cut` is the rest of the prompt, as the tokenizer normalises it, for the caller to show.

        Raises:
            ValueError: `length` is not positive.
        """
        if length < 1:
            raise ValueError(f"length = {length}: expected 1 or more tokens")
        found = list(self._tokens(prompt))
        kept = [token for token, _ in found[: length - 1]]
        cut = "".join(text for _, text in found[length - 1 :]).strip()
        ids = np.full(length, PAD, np.int32)
        ids[: len(kept) + 1] = [*kept, EOS]
        return Tokens(ids, cut)

    def _tokens(self, prompt: str) -> Iterator[tuple[int, str]]:
        """Ids without padding and end, each with the part of the prompt that it stands for."""
        for part in self._split.split(prompt):
            if part in self._special:
                yield self._special[part], part
                continue
            pieces = self._pieces.encode_as_pieces(part)
            for id_, piece in zip(self._pieces.encode_as_ids(part), pieces, strict=True):
                yield id_, piece.replace(_SPACE, " ")


def _open_pieces(folder: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
    path = folder / MODEL_FILE
    if path.is_file():
        model = path.read_bytes()
    elif (folder / JSON_FILE).is_file():
        path = folder / JSON_FILE
        model = sentencepiece_model(path)
    else:
        raise FileNotFoundError(f"{folder}: no {MODEL_FILE} and no {JSON_FILE}, the tokenizer's")
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: not a SentencePiece model: {error}") from error
    found = pieces.pad_id(), pieces.eos_id(), pieces.unk_id()
    if found != (PAD, EOS, UNKNOWN):
        raise ValueError(
            f"{path}: not T5's: ids {found} of padding, end and unknown, expected "
            f"{(PAD, EOS, UNKNOWN)}"
        )
    return pieces


def _read_config(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("tokenizer_class", _CLASSES[0])
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected the JSON of a tokenizer: {error}") from error
    if found not in _CLASSES:
        raise ValueError(f"{path}: tokenizer_class = {found!r}: expected {_CLASSES[0]}")
    return config


def _special_tokens(
    pieces: sentencepiece.SentencePieceProcessor, config: Mapping[str, Any], *, where: pathlib.Path
) -> dict[str, int]:
    """Tokens that are found in a text before SentencePiece sees it: text -> id.

    Raises:
        ValueError: the config says something else than tokens; names the key and its value.
    """
    size = pieces.get_piece_size()
    special = {pieces.id_to_piece(id_): id_ for id_ in (PAD, EOS, UNKNOWN)}
    count = config.get("extra_ids", _EXTRA_IDS)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"{where}: extra_ids = {count!r}: expected a number of tokens")
    # The last ones come first: <extra_id_0> has the largest id.
    special |= {f"<extra_id_{i}>": size + count - 1 - i for i in range(count)}
    added = config.get("added_tokens_decoder", {})
    if not isinstance(added, Mapping):
        raise ValueError(f"{where}: added_tokens_decoder = {added!r}: expected an object")
    for id_, token in added.items():
        content = token.get("content") if isinstance(token, Mapping) else None
        if not (id_.isascii() and id_.isdecimal() and isinstance(content, str) and content):
            raise ValueError(
                f"{where}: added_tokens_decoder: {id_!r} = {token!r}: expected an id, 0 or more, "
                "and a token with its text as content"
            )
        special[content] = int(id_)
    return special
