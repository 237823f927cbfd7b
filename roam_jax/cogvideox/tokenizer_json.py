"""A SentencePiece model from the `tokenizer.json` that transformers 5 saves in its place.

A pipeline that was saved anew has no `spiece.model`, but its `tokenizer.json` holds all of one: the
pieces with their scores, and the table of the text's normalisation. Both are written out as the
protocol buffer that SentencePiece reads (sentencepiece_model.proto; numbers are its field numbers).
"""

from __future__ import annotations

import base64
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

# Piece.type
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_UNIGRAM = 1
_VARINT, _BYTES, _FLOAT = 0, 2, 5


def sentencepiece_model(path: pathlib.Path) -> bytes:
    """The serialised model of a T5 `tokenizer.json`.

    Raises:
        ValueError: it does not parse, or is no unigram model of SentencePiece.
    """
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        model, normalizer = tokenizer["model"], tokenizer["normalizer"]
        kinds = model["type"], normalizer["type"]
        if kinds != ("Unigram", "Precompiled"):
            raise ValueError(f"model and normalizer {kinds}, expected ('Unigram', 'Precompiled')")
        special = {token["content"] for token in tokenizer["added_tokens"]}
        table = base64.b64decode(normalizer["precompiled_charsmap"])
        return _model(model, special, table)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: not T5's tokenizer: {error!r}") from error


def _model(model: Mapping[str, Any], special: set[str], table: bytes) -> bytes:
    unknown, vocabulary = model["unk_id"], model["vocab"]
    # The sentinels that follow the pieces are added tokens, which SentencePiece does not know.
    while vocabulary and vocabulary[-1][0].startswith("<extra_id_"):
        vocabulary = vocabulary[:-1]
    pieces = []
    for id_, (piece, score) in enumerate(vocabulary):
        kind = _UNKNOWN if id_ == unknown else _CONTROL if piece in special else _NORMAL
        pieces.append(_bytes(1, piece.encode()) + _float(2, score) + _integer(3, kind))
    ids = {piece: id_ for id_, (piece, _) in enumerate(vocabulary)}
    trainer = _integer(3, _UNIGRAM) + _integer(4, len(vocabulary)) + _integer(40, unknown)
    for field, piece in ((41, None), (42, "</s>"), (43, "<pad>")):
        trainer += _integer(field, ids.get(piece, -1))
    # Spaces: one before the text, none twice, written as a visible character.
    spaces = b"".join(_integer(field, 1) for field in (3, 4, 5))
    listed = b"".join(_bytes(1, piece) for piece in pieces)
    return listed + _bytes(2, trainer) + _bytes(3, _bytes(2, table) + spaces)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FLOAT) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value
