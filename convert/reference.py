"""The networks of diffusers and transformers, in torch with one module's weights at a time.

A network is built without memory for its parameters. A module's weights are read, as float32, when
the forward pass comes to it, and dropped when it is done; what went in and came out is kept. So a
network of any depth runs in about the memory of one block, in its own order.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import safetensors
import torch
import transformers

from roam_jax.cogvideox.components import CONFIG_FILE
from roam_jax.cogvideox.text_names import ALIASES

# What is one module: all that has parameters is in exactly one of them.
_TRANSFORMER_MODULES = re.compile(
    r"patch_embed|time_embedding|transformer_blocks\.\d+|norm_final|norm_out|proj_out"
)
_VAE_MODULES = re.compile(
    r"(en|de)coder\.(conv_in|norm_out|conv_out|.*(resnets|downsamplers|upsamplers)\.\d+)"
)
# Key -> its tied copies.
_COPIES = {of: [copy for copy, other in ALIASES.items() if other == of] for of in ALIASES.values()}
_TEXT_MODULES = re.compile(r"shared|encoder\.(embed_tokens|block\.\d+|final_layer_norm)")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        inputs: the tensors among its arguments, in order.
        outputs: the tensors that it returned; of a causal convolution also its cache.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


Calls = dict[str, Call]


@torch.inference_mode()
def run_transformer(
    folder: pathlib.Path, latents: np.ndarray, text: np.ndarray, timesteps: np.ndarray
) -> tuple[Calls, np.ndarray]:
    """Runs `CogVideoXTransformer3DModel`.

    Args:
        folder: of the network, in diffusers' format.
        latents: (B, F, C, H, W) with F > 1.
        text: (B, S, D).
        timesteps: (B,).

    Returns:
        Module -> its call, in the order of the forward pass; the velocity.
    """
    # Positions of the trained size lie in a buffer that is no part of the weights, and so would
    # have no values here; those of other sizes are computed in the forward pass.
    config = _config(folder) | {"sample_frames": 1}
    model = _without_memory(diffusers.CogVideoXTransformer3DModel, config)
    calls = _load_and_record(model, _TRANSFORMER_MODULES, folder)
    return calls, model(*map(torch.from_numpy, (latents, text, timesteps))).sample.numpy()


@torch.inference_mode()
def run_vae(
    folder: pathlib.Path, video: np.ndarray, latents: np.ndarray
) -> tuple[Calls, np.ndarray, np.ndarray]:
    """Encodes a video and decodes latents with `AutoencoderKLCogVideoX`.

    Args:
        folder: of the network, in diffusers' format.
        video: (B, C, T, H, W).
        latents: (B, C, F, h, w).

    Returns:
        Module -> its call for the first chunk; mean and log-variance of the latents in one array;
        the decoded video.
    """
    model = _without_memory(diffusers.AutoencoderKLCogVideoX, _config(folder))
    calls = _load_and_record(model, _VAE_MODULES, folder)
    posterior = model.encode(torch.from_numpy(video)).latent_dist
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    return calls, moments.numpy(), model.decode(torch.from_numpy(latents)).sample.numpy()


@torch.inference_mode()
def run_text_encoder(folder: pathlib.Path, ids: np.ndarray) -> tuple[Calls, np.ndarray]:
    """Runs `T5EncoderModel` without a mask, as CogVideoX does.

    Args:
        folder: of the network, in transformers' format.
        ids: (B, S) token ids.

    Returns:
        Module -> its call, in the order of the forward pass; the embeddings.
    """
    with torch.device("meta"):
        model = transformers.T5EncoderModel(transformers.T5Config(**_config(folder))).eval()
    calls = _load_and_record(model, _TEXT_MODULES, folder)
    embeddings = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    # The token embedding is one module under two names.
    if "encoder.embed_tokens" in calls:
        calls["shared"] = calls.pop("encoder.embed_tokens")
    return calls, embeddings


def stored_tensors(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a network's safetensors files as float32, one at a time."""
    for key, file in _open(folder).items():
        yield key, file.get_tensor(key).float().numpy()


def _open(folder: pathlib.Path) -> dict[str, safetensors.safe_open]:
    """Key -> the open file that has its tensor; by the format's own library, not by ours."""
    paths = sorted(folder.glob("*.safetensors"))
    files = [safetensors.safe_open(path, framework="pt") for path in paths]
    return {key: file for file in files for key in file.keys()}  # noqa: SIM118, it is no dict


def _tensor(files: dict[str, safetensors.safe_open], key: str) -> torch.Tensor:
    """A tensor by its name or that of its tied copy, float32."""
    others = [name for name in (key, ALIASES.get(key), *_COPIES.get(key, ())) if name in files]
    return files[others[0]].get_tensor(others[0]).float()


def _config(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_FILE).read_text())


def _without_memory(kind: type, config: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return kind.from_config(config).eval()


def _load_and_record(model: torch.nn.Module, modules: re.Pattern, folder: pathlib.Path) -> Calls:
    """Makes the named modules read weights and note their calls; what they note is returned."""
    file_of = _open(folder)
    calls: Calls = {}

    def attach(name: str, module: torch.nn.Module) -> None:
        def load(*_):
            keys = module.state_dict()
            weights = {key: _tensor(file_of, f"{name}.{key}") for key in keys}
            module.load_state_dict(weights, assign=True)

        def record(_, args, kwargs, output):
            # A network in chunks comes to a module once a chunk; later ones have caches as inputs.
            outputs = output if isinstance(output, tuple) else (output,)
            calls.setdefault(name, Call(_arrays((*args, *kwargs.values())), _arrays(outputs)))
            module.to("meta")

        module.register_forward_pre_hook(load)
        module.register_forward_hook(record, with_kwargs=True)

    for name, module in model.named_modules():
        if modules.fullmatch(name):
            attach(name, module)
    return calls


def _arrays(values: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    return tuple(value.numpy() for value in values if isinstance(value, torch.Tensor))
