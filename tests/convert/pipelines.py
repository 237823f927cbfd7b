"""A very small CogVideoX pipeline, as diffusers writes it."""

import json

from tests.cogvideox.diffusers_models import TINY, random_transformer
from tests.tiny_weights import VAE_CONFIG

PROMPTS = ["pick up the red cube", "", "close the drawer"]


def write_pipeline(folder, *, dtype="float32", shards=False):
    """Random weights; the scheduler has a setting that is not CogVideoX-2B's."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer")
    config = transformers.T5Config(
        vocab_size=28, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    pipeline = diffusers.CogVideoXPipeline(
        tokenizer=transformers.T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.T5EncoderModel(config),
        vae=diffusers.AutoencoderKLCogVideoX.from_config(VAE_CONFIG.to_json()),
        transformer=random_transformer(TINY),
        scheduler=diffusers.CogVideoXDPMScheduler(snr_shift_scale=2.5),
    )
    size = "20kB" if shards else "10GB"
    pipeline.to(dtype=getattr(torch, dtype)).save_pretrained(folder, max_shard_size=size)
    write_tokenizer(folder / "tokenizer")
    return folder


def write_tokenizer(folder):
    """With the SentencePiece model that transformers no longer writes."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 4), model_prefix=str(folder / "spiece"), vocab_size=28,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def stored_bits(folder):
    """Key -> (dtype, shape, bit pattern), read from a network's files by the format's library."""
    import safetensors.torch
    import torch

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for key, tensor in safetensors.torch.load_file(path).items():
            integer = {2: torch.int16, 4: torch.int32}[tensor.itemsize]
            bits = tensor.view(integer).numpy().tobytes()
            found[key] = tensor.dtype, tuple(tensor.shape), bits
    return found
