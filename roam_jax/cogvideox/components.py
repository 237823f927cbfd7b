"""The networks of a CogVideoX checkpoint, a folder each: how config and tensors are read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import TensorName, transformer_names
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.vae_names import vae_names

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Component:
    """One network.

    Args:
        config: its config dataclass, with `from_json` and `to_json`.
        names: config -> every tensor.
    """

    config: type[TransformerConfig] | type[VAEConfig]
    names: Callable[[Any], tuple[TensorName, ...]]

    def read_config(self, folder: pathlib.Path) -> TransformerConfig | VAEConfig:
        """Reads the folder's config.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it does not parse, or is of another model.
        """
        path = folder / CONFIG_FILE
        try:
            return self.config.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file, the sizes of the model") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write_config(self, folder: pathlib.Path, config: TransformerConfig | VAEConfig) -> None:
        """Writes the folder's config.json, as diffusers does."""
        text = json.dumps(config.to_json(), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n")


COMPONENTS = {
    "transformer": Component(TransformerConfig, transformer_names),
    "vae": Component(VAEConfig, vae_names),
}
