"""Text embeddings of many prompts, by the T5 encoder of a converted folder, in one file.

Nobody keeps T5-XXL beside a training run; embeddings are made once.
"""

from __future__ import annotations

import codecs
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, Float32

from roam_jax.cogvideox.mapped import create_tensors
from roam_jax.cogvideox.prompts import PromptEncoder
from roam_jax.data.text import PROMPTS, TENSOR


def write_embeddings(
    model: pathlib.Path, prompts: pathlib.Path, out: pathlib.Path, *, dtype: str
) -> tuple[int, int, int]:
    """Writes `embeddings` (P, 226, D) float16, with the P prompts as JSON metadata.

    A prompt that is longer than 226 tokens is cut, and a warning shows what was cut.

    Args:
        model: converted folder with `tokenizer/` and `text_encoder/`.
        prompts: UTF-8 text, one prompt a line; lines may end as on Windows.
        out: the new safetensors file; appears whole or not at all.
        dtype: compute dtype, float32 or bfloat16.

    Returns:
        Shape of the embeddings.

    Raises:
        FileNotFoundError: a part of the model, or the prompts, are not there.
        FileExistsError: `out` exists.
        ValueError: no prompts, a line that is not UTF-8, or an embedding beyond float16.
    """
    lines = _read_lines(prompts)
    if not lines:
        raise ValueError(f"{prompts}: empty, expected one prompt a line")
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it, or choose another file")
    encoder = PromptEncoder(model, dtype=jnp.dtype(dtype))

    shape = (len(lines), encoder.length, encoder.width)
    specs = {TENSOR: (shape, np.dtype(np.float16))}
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with create_tensors(partial, specs, metadata={PROMPTS: json.dumps(lines)}) as tensors:
            for row, embedding in enumerate(encoder.encode(lines)):
                tensors[TENSOR][row] = _halved(embedding, where=f"{prompts}:{row + 1}")
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return shape


def _read_lines(path: pathlib.Path) -> list[str]:
    """The lines; a byte order mark at the start and the \\r of Windows' line ends are no text."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not content:
        return []
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: no UTF-8 text: {error}") from error
    return lines


def _halved(embedding: Float32[np.ndarray, "S D"], *, where: str) -> Float16[np.ndarray, "S D"]:
    with np.errstate(over="ignore"):
        half = embedding.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{where}: the embedding has {np.abs(embedding).max()}, beyond float16")
    return half
