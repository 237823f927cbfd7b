"""Prompts to text embeddings, by the tokenizer and the encoder of a converted folder.

As the published pipeline makes them: every prompt is padded to 226 tokens, padding is attended, and
a prompt that is too long is cut, with a warning that shows what was cut.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32, Int

from roam_jax.cogvideox.load import load_text_encoder
from roam_jax.cogvideox.text_encoder import encode_by_layers
from roam_jax.cogvideox.tokenizer import TEXT_TOKENS, Tokenizer

# Prompts that pass through a layer before the next is read: 3.7 MB each at the published sizes.
_GROUP = 64
# Characters of a prompt that a warning names it by.
_SHOWN = 60


class PromptEncoder:
    """Opens the text parts of a converted folder; weights are read when prompts are encoded.

    Args:
        folder: holds `text_encoder/` and `tokenizer/`, as `python -m convert import` writes them.
        dtype: compute dtype; None = float32 on CPUs, bfloat16 on accelerators.
        length: tokens S of every prompt; None = 226, which CogVideoX was trained with.

    Raises:
        FileNotFoundError: a part is not there.
        ValueError: the parts do not belong together.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, dtype: Any = None, length: int | None = None
    ):
        folder = pathlib.Path(folder)
        self._encoder, self._params = load_text_encoder(folder, dtype=dtype)
        self._tokenizer = Tokenizer(folder / "tokenizer")
        self.length = TEXT_TOKENS if length is None else length
        rows = self._encoder.config.vocab_size
        if self._tokenizer.size > rows:
            raise ValueError(
                f"{folder}: the tokenizer has {self._tokenizer.size} ids, the text encoder "
                f"{rows}: they are not of one model"
            )

    @property
    def width(self) -> int:
        """Width D of an embedding."""
        return self._encoder.config.d_model

    def encode(self, prompts: Sequence[str]) -> Iterator[Float32[np.ndarray, "S D"]]:
        """The embeddings of prompts, in order; some are computed at a time."""
        for start in range(0, len(prompts), _GROUP):
            ids = np.stack([self._tokenize(prompt) for prompt in prompts[start : start + _GROUP]])
            yield from encode_by_layers(self._encoder, self._params, ids)

    def _tokenize(self, prompt: str) -> Int[np.ndarray, " S"]:
        tokens = self._tokenizer.encode(prompt, self.length)
        if tokens.cut:
            logging.warning(
                "a prompt is longer than %d tokens, its end is cut: of the prompt %r this part is "
                "not read: %r",
                self.length,
                prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}...",
                tokens.cut,
            )
        return tokens.ids


def encode_prompts(
    folder: str | os.PathLike[str],
    prompts: Sequence[str],
    *,
    dtype: Any = None,
    length: int | None = None,
) -> Float32[np.ndarray, "B S D"]:
    """Embeddings of a few prompts; see `PromptEncoder` for the arguments and what is raised.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("prompts = []: expected at least one prompt")
    return np.stack([*PromptEncoder(folder, dtype=dtype, length=length).encode(prompts)])
