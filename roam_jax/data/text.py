"""Text embeddings that were made before training: one file, memory-mapped, looked up by prompt.

`python -m convert text` writes the file: tensor `embeddings` (prompts, tokens, width) in float16,
and the prompts as a JSON list in the file's metadata.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

TENSOR = "embeddings"
PROMPTS = "prompts"
# Missing prompts that a message names.
MISSING_NAMED = 20


class TextEmbeddings:
    """Embeddings of known prompts; a prompt's rows are read when they are asked for.

    Args:
        path: safetensors file of `python -m convert text`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or prompts and embeddings differ in number.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no text embeddings; {_recipe(self.path)}")
        try:
            self._file = safe_open(self.path, framework="numpy")
            prompts = json.loads((self._file.metadata() or {})[PROMPTS])
            self._embeddings = self._file.get_slice(TENSOR)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.path}: expected a safetensors file with a tensor {TENSOR!r} and a JSON "
                f"list {PROMPTS!r} in its metadata ({error}); {_recipe(self.path)}"
            ) from error
        shape = self._embeddings.get_shape()
        if len(shape) != 3 or shape[0] != len(prompts):
            raise ValueError(
                f"{self.path}: embeddings of shape {tuple(shape)} for {len(prompts)} prompts, "
                f"expected ({len(prompts)}, tokens, width)"
            )
        self.tokens, self.width = shape[1:]
        self._row = {prompt: row for row, prompt in enumerate(prompts)}

    def __reduce__(self) -> tuple:
        """Opened anew in another process: a mapped file cannot travel."""
        return TextEmbeddings, (self.path,)

    def __getitem__(self, prompt: str) -> Float32[np.ndarray, "S D"]:
        """The embedding of one prompt, as float32.

        Raises:
            ValueError: the file does not have the prompt.
        """
        self.require([prompt])
        row = self._row[prompt]
        return self._embeddings[row : row + 1][0].astype(np.float32)

    def require(self, prompts: Iterable[str]) -> None:
        """Refuses prompts without an embedding, in one message that counts all and names some.

        Raises:
            ValueError: some prompt is missing.
        """
        missing = sorted(set(prompts) - self._row.keys())
        if missing:
            raise ValueError(
                f"{self.path}: no embedding of {len(missing)} instructions, such as "
                f"{missing[:MISSING_NAMED]}; "
                f"{_recipe(self.path)}"
            )


def _recipe(path: pathlib.Path) -> str:
    return (
        "run `python -m convert prompts --data ROOT --out FILE`, then `python -m convert text "
        f"--model DIR --prompts FILE --out {path}`"
    )
