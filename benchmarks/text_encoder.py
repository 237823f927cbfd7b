"""The text encoder against torch: `python benchmarks/text_encoder.py [--repeats 11]`.

Layers of T5 v1.1 XXL at their full width with random weights, 226 tokens, one prompt, float32. The
other side is transformers' `T5EncoderModel` with the same weights, without gradients; the two take
turns in one process, and their outputs are compared. The line after each comparison is JSON. Ours
runs a layer at a time, as `encode_prompts` does; the same with weights stored in float16, as a
checkpoint keeps them, and the scan over all layers come after it.
"""

from __future__ import annotations

import argparse
import functools
import sys

import jax
import numpy as np
import torch
from against_torch import alternate, machine, params_from_torch, relative_error, report
from transformers import T5Config, T5EncoderModel

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_encoder import TextEncoder, encode_by_layers
from roam_jax.cogvideox.text_names import text_encoder_names

TOLERANCE = 1e-5
RATIO = 1.1
# The table of tokens is only looked up.
VOCABULARY = 512
PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=TransformerConfig.max_text_seq_length)
    args = parser.parse_args()

    print(f"{machine()}, {torch.get_num_threads()} threads of torch")
    config = TextEncoderConfig(num_layers=args.layers, vocab_size=VOCABULARY)
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(**config.to_json())).eval()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, args.tokens)).astype(np.int32)
    tensor = torch.tensor(ids.astype(np.int64))

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return model(tensor).last_hidden_state

    params = params_from_torch(text_encoder_names(config), model.state_dict())
    encoder = TextEncoder(config)
    ours = functools.partial(encode_by_layers, encoder, jax.tree.map(np.asarray, params), ids)
    theirs()
    ours()
    timings, (output, expected) = alternate([ours, theirs], repeats=args.repeats)
    errors = {"output": relative_error([output], [expected])}
    name = f"{args.layers} layer(s), {args.tokens} tokens, stored in float32"
    within = report(name, errors, *timings, tolerance=TOLERANCE, required=RATIO)

    half = jax.tree.map(lambda x: np.asarray(x.astype(np.float16)), params)
    halved = functools.partial(encode_by_layers, encoder, half)
    halved(ids)
    scan = jax.jit(encoder.apply).lower({"params": params}, ids).compile()
    runs = {
        "stored in float16, one prompt": lambda: halved(ids),
        f"stored in float16, {PROMPTS} prompts": lambda: halved(np.repeat(ids, PROMPTS, axis=0)),
        "scan over layers, float32": lambda: scan({"params": params}, ids).block_until_ready(),
    }
    for title, timing in zip(runs, alternate(list(runs.values()), repeats=3)[0], strict=True):
        print(f"{title}: {timing}")
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
