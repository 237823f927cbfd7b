"""Writes our parameters as a diffusers directory, which `from_pretrained` loads."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from roam_jax.cogvideox.components import COMPONENTS, Component, NetworkConfig
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.importing import new_directory
from roam_jax.cogvideox.mapped import copy_tiled, create_tensors
from roam_jax.cogvideox.names import account_params
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.contracts import Params


def save_diffusers(
    directory: str | os.PathLike[str],
    *,
    transformer: tuple[TransformerConfig, Params] | None = None,
    vae: tuple[VAEConfig, Params] | None = None,
    text_encoder: tuple[TextEncoderConfig, Params] | None = None,
    dtype: np.dtype | type | None = None,
) -> None:
    """Writes one or more networks; the inverse of `import_diffusers`.

    Args:
        directory: the new folder; appears whole or not at all.
        transformer, vae, text_encoder: config and parameters, whose leaves are arrays of any kind.
        dtype: float16, bfloat16 or float32 for every tensor; None keeps each parameter's own.

    Raises:
        FileExistsError: `directory` exists.
        ValueError: no network is given, or its parameters do not fit its config.
    """
    parts = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
    given = {name: part for name, part in parts.items() if part is not None}
    if not given:
        raise ValueError("save_diffusers: expected transformer, vae or text_encoder")
    with new_directory(pathlib.Path(directory)) as folder:
        write_networks(folder, given, dtype=dtype)


def write_networks(
    folder: pathlib.Path,
    networks: Mapping[str, tuple[NetworkConfig, Params]],
    *,
    dtype: np.dtype | type | None = None,
) -> None:
    """Writes networks, by name of `COMPONENTS`, into a folder that is there; see `save_diffusers`.

    Raises:
        ValueError: parameters do not fit their config.
    """
    for name, (config, params) in networks.items():
        _save_component(folder / name, COMPONENTS[name], config, params, dtype)


def _save_component(
    folder: pathlib.Path,
    component: Component,
    config: NetworkConfig,
    params: Params,
    dtype: np.dtype | type | None,
) -> None:
    flat = traverse_util.flatten_dict(params, sep="/")
    names = component.names(config)
    shapes = {name: parameter.shape for name, parameter in flat.items()}
    account_params(names, shapes, where=f"parameters of {folder.name}")

    folder.mkdir()
    component.write_config(folder, config)
    specs = {
        key: (name.shape, np.dtype(flat[name.target].dtype if dtype is None else dtype))
        for name in names
        for key in name.keys
    }
    with create_tensors(folder / component.weights_file, specs) as tensors:
        for name in names:
            for key, tensor in name.to_theirs(np.asarray(flat[name.target])).items():
                copy_tiled(tensor, tensors[key])
