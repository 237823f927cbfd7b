"""Text embeddings by the T5 encoder of a diffusers directory, in torch.

As diffusers' CogVideoX pipeline makes them: every prompt is padded to 226 tokens and the encoder
gets no mask, so padding is attended. Nobody keeps T5-XXL beside a training run; embeddings are made
once.
"""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import torch
import transformers

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.mapped import create_tensors

TEXT_TOKENS = TransformerConfig.max_text_seq_length


def write_embeddings(
    model: pathlib.Path, prompts: pathlib.Path, out: pathlib.Path, *, dtype: str
) -> tuple[int, int, int]:
    """Writes `embeddings` (P, 226, D) float16, with the P prompts as JSON metadata.

    Args:
        model: diffusers directory with `tokenizer/` and `text_encoder/`.
        prompts: UTF-8 text, one prompt a line.
        out: the new safetensors file; appears whole or not at all.
        dtype: compute dtype, float32 or bfloat16.

    Returns:
        Shape of the embeddings.

    Raises:
        FileNotFoundError: a part of the model, or the prompts, are not there.
        FileExistsError: `out` exists.
        ValueError: no prompts, a prompt longer than 226 tokens, or an embedding beyond float16.
    """
    with prompts.open(encoding="utf-8") as file:
        lines = [line.removesuffix("\n") for line in file]
    if not lines:
        raise ValueError(f"{prompts}: empty, expected one prompt a line")
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it, or choose another file")
    for part in ("tokenizer", "text_encoder"):
        if not (model / part).is_dir():
            raise FileNotFoundError(f"{model}: expected a folder {part} in it")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        model / "tokenizer", local_files_only=True
    )
    places = [f"{prompts}:{number}" for number in range(1, len(lines) + 1)]
    token_ids = [
        _tokenize(tokenizer, line, where=place) for line, place in zip(lines, places, strict=True)
    ]
    encoder = transformers.T5EncoderModel.from_pretrained(
        model / "text_encoder",
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
    ).eval()

    shape = (len(lines), TEXT_TOKENS, encoder.config.d_model)
    specs = {"embeddings": (shape, np.dtype(np.float16))}
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with create_tensors(partial, specs, metadata={"prompts": json.dumps(lines)}) as tensors:
            for row, ids in enumerate(token_ids):
                tensors["embeddings"][row] = _embed(encoder, ids, where=places[row])
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return shape


def _tokenize(tokenizer, prompt: str, *, where: str) -> list[int]:
    """Token ids, padded; a longer prompt is refused where diffusers would cut it."""
    ids = tokenizer(prompt, padding="max_length", max_length=TEXT_TOKENS).input_ids
    if len(ids) > TEXT_TOKENS:
        raise ValueError(f"{where}: {len(ids)} tokens, expected at most {TEXT_TOKENS}: {prompt!r}")
    return ids


@torch.inference_mode()
def _embed(encoder: transformers.T5EncoderModel, ids: list[int], *, where: str) -> np.ndarray:
    hidden = encoder(torch.tensor([ids]))[0][0].float().numpy()
    with np.errstate(over="ignore"):
        embedding = hidden.astype(np.float16)
    if not np.isfinite(embedding).all():
        raise ValueError(f"{where}: the embedding has {np.abs(hidden).max()}, beyond float16")
    return embedding
