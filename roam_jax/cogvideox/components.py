"""The parts of a CogVideoX checkpoint, a folder each: how config and tensors are read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from roam_jax.cogvideox import config as transformer_config
from roam_jax.cogvideox import text_config, vae_config
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import TensorName, transformer_names
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_names import ALIASES, text_encoder_names
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names

CONFIG_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
TOKENIZER, SCHEDULER = "tokenizer", "scheduler"
NetworkConfig = TransformerConfig | VAEConfig | TextEncoderConfig


@dataclasses.dataclass(frozen=True)
class Component:
    """One network.

    Args:
        config: its config dataclass, with `from_json` and `to_json`.
        names: config -> every tensor.
        library, class_name: whose network it is, in which package.
        weights_file: what that package calls the weights.
        aliases: key of a tied copy that a checkpoint may hold -> whose copy it is.
    """

    config: type[NetworkConfig]
    names: Callable[[Any], tuple[TensorName, ...]]
    library: str
    class_name: str
    weights_file: str
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read_config(self, folder: pathlib.Path) -> NetworkConfig:
        """Reads the folder's config.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it does not parse, or is of another model.
        """
        path = folder / CONFIG_FILE
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, Mapping):
                raise ValueError(f"holds {found!r:.40}, expected a JSON object")
            return self.config.from_json(found)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file, the sizes of the model") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write_config(self, folder: pathlib.Path, config: NetworkConfig) -> None:
        """Writes the folder's config.json, as the network's own package does."""
        text = json.dumps(config.to_json(), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n")


_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
COMPONENTS = {
    "transformer": Component(
        TransformerConfig,
        transformer_names,
        "diffusers",
        transformer_config.CLASS_NAME,
        _DIFFUSERS_WEIGHTS,
    ),
    "vae": Component(VAEConfig, vae_names, "diffusers", vae_config.CLASS_NAME, _DIFFUSERS_WEIGHTS),
    "text_encoder": Component(
        TextEncoderConfig,
        text_encoder_names,
        "transformers",
        text_config.CLASS_NAME,
        "model.safetensors",
        aliases=ALIASES,
    ),
}
