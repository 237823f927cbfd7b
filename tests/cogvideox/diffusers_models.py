"""Small random diffusers models, and our trees with their weights."""

import numpy as np
from flax import traverse_util

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import account, transformer_names

# 9 sample frames are 3 latent frames. Width 48 is one where torch's float32 exp is correctly
# rounded for every frequency of the time embedding; elsewhere about one in a hundred is 1 ulp off,
# which the timestep multiplies by up to 999.
TINY = TransformerConfig(
    num_attention_heads=3,
    attention_head_dim=16,
    time_embed_dim=32,
    text_embed_dim=24,
    num_layers=3,
    max_text_seq_length=5,
    sample_width=10,
    sample_height=6,
    sample_frames=9,
)


def random_transformer(config: TransformerConfig, *, seed: int = 0):
    """A diffusers model in which no parameter has a special value, norms and biases included."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(seed)
    model = CogVideoXTransformer3DModel.from_config(config.to_json()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if "norm" in name else 0.05))
    return model


def random_params(config, names=transformer_names):
    """A random float32 tree, without torch."""
    rng = np.random.default_rng(0)
    flat = {
        name.target: rng.normal(0, 0.1, name.target_shape).astype(np.float32)
        for name in names(config)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def our_params(config: TransformerConfig, tensors: dict[str, np.ndarray]):
    """Our tree, from diffusers' state."""
    names = transformer_names(config)
    found = {key: tensor.shape for key, tensor in tensors.items()}
    account(names, found, where="state")
    flat = {}
    for name in names:
        layers = [name.to_ours(tensors[key]) for key in name.keys]
        flat[name.target] = np.stack(layers) if name.stacked else layers[0]
    return traverse_util.unflatten_dict(flat, sep="/")


def state(model) -> dict[str, np.ndarray]:
    """Weights of a torch model as NumPy arrays."""
    return {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}


def relative_error(ours, theirs) -> float:
    """Relative L2 distance, in float64."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
