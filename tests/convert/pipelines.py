"""A very small CogVideoX pipeline, as diffusers writes it."""

from tests.cogvideox.diffusers_models import TINY, random_transformer
from tests.cogvideox.text_models import write_tokenizer
from tests.tiny_weights import VAE_CONFIG

PROMPTS = ["pick up the red cube", "", "close the drawer"]
# As many pieces as the text encoder below knows.
TOKENIZER = {
    "sentences": PROMPTS,
    "most_pieces": 28,
    "config": {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"},
}


def write_pipeline(folder, *, dtype="float32", shards=False):
    """Random weights; the scheduler has a setting that is not CogVideoX-2B's."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    write_tokenizer(folder / "tokenizer", **TOKENIZER)
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
    # With the SentencePiece model, which transformers no longer writes.
    write_tokenizer(folder / "tokenizer", **TOKENIZER)
    return folder


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
