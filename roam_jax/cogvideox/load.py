"""Opens a converted checkpoint: modules, and parameters as views on memory-mapped files.

Opening reads headers only. Parameters keep the dtype of the file; the modules promote them where
they are used, so float16 weights of the 2B model stay 3.4 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from roam_jax.cogvideox.components import COMPONENTS, CONFIG_FILE, NetworkConfig
from roam_jax.cogvideox.importing import MANIFEST_FILE, WEIGHTS_FILE, Manifest, hash_file
from roam_jax.cogvideox.mapped import open_tensors
from roam_jax.cogvideox.names import account_params
from roam_jax.cogvideox.text_encoder import TextEncoder
from roam_jax.cogvideox.transformer import Transformer
from roam_jax.cogvideox.vae import VAE
from roam_jax.contracts import Params


def load_transformer(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[Transformer, Params]:
    """Opens DST/transformer, as written by `import_diffusers`.

    Args:
        path: the converted folder DST.
        dtype: compute dtype; None = float32 on CPUs, bfloat16 on accelerators.

    Returns:
        The module, and read-only NumPy views for `module.apply({"params": params}, latents, text,
        timesteps)`.

    Raises:
        FileNotFoundError: not a converted folder.
        ValueError: the files do not belong together.
    """
    config, params = _load(path, "transformer")
    return Transformer(config, _compute_dtype(dtype)), params


def load_vae(path: str | os.PathLike[str], *, dtype: Any = None) -> tuple[VAE, Params]:
    """Opens DST/vae; as `load_transformer`."""
    config, params = _load(path, "vae")
    return VAE(config, _compute_dtype(dtype)), params


def load_text_encoder(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[TextEncoder, Params]:
    """Opens DST/text_encoder; as `load_transformer`, for (B, S) token ids."""
    config, params = _load(path, "text_encoder")
    return TextEncoder(config, _compute_dtype(dtype)), params


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hash of a converted network, its weights and its config; reads the whole file.

    Args:
        folder: DST/transformer, DST/vae or DST/text_encoder.

    Raises:
        FileNotFoundError: not a converted network.
        ValueError: the weights are not the ones that the manifest was written for.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    found = hash_file(folder / WEIGHTS_FILE)
    if found != manifest.fingerprint:
        raise ValueError(
            f"{folder / WEIGHTS_FILE}: its bytes changed since it was written: they have the hash "
            f"{found}, {folder / MANIFEST_FILE} says {manifest.fingerprint}; import it again"
        )
    return written_fingerprint(folder, manifest)


def written_fingerprint(folder: pathlib.Path, manifest: Manifest) -> str:
    """`fingerprint` of a network that was just written; its weights are not read again."""
    parts = manifest.fingerprint + hash_file(folder / CONFIG_FILE)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _compute_dtype(dtype: Any) -> Any:
    if dtype is not None:
        return dtype
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def open_parameters(
    path: str | os.PathLike[str], part: str
) -> tuple[NetworkConfig, dict[str, np.ndarray]]:
    """Config of one network of a converted folder, and read-only views by "/"-joined name.

    Args:
        path: the converted folder DST.
        part: a name of `COMPONENTS`.

    Raises:
        FileNotFoundError: not a converted folder.
        ValueError: the files do not belong together.
    """
    folder = pathlib.Path(path) / part
    read_manifest(folder)
    config = COMPONENTS[part].read_config(folder)
    names = COMPONENTS[part].names(config)
    parameters = open_tensors(folder / WEIGHTS_FILE)
    found = {name: parameter.shape for name, parameter in parameters.items()}
    account_params(names, found, where=str(folder))
    return config, parameters


def _load(path: str | os.PathLike[str], part: str) -> tuple[Any, Params]:
    config, parameters = open_parameters(path, part)
    return config, traverse_util.unflatten_dict(parameters, sep="/")


def read_manifest(folder: pathlib.Path) -> Manifest:
    """What a converted network's manifest says, which has to fit the size of its weights.

    Raises:
        FileNotFoundError: no manifest or no weights.
        ValueError: it does not parse, or is of other weights.
    """
    path, weights = folder / MANIFEST_FILE, folder / WEIGHTS_FILE
    if not path.is_file() or not weights.is_file():
        raise FileNotFoundError(
            f"{folder}: no {path.name} with {weights.name}; "
            "`python -m convert import --src DIFFUSERS_DIR --dst DIR` writes both"
        )
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no manifest of this version: {error}") from error
    if weights.stat().st_size != manifest.bytes:
        raise ValueError(
            f"{weights}: has {weights.stat().st_size} bytes, its manifest says {manifest.bytes}"
        )
    return manifest
