"""JAX's persistent cache of compiled programs: a second start of the same run compiles nothing.

An entry belongs to one program, one set of compiler flags and one kind of device, so runs of all
configs share a folder.
"""

from __future__ import annotations

import os
import pathlib

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

AUTO = "auto"
# What compiles in less is not worth a file.
LEAST_SECONDS = 0.5


def enable(setting: str, cache_dir: pathlib.Path) -> pathlib.Path | None:
    """Turn the cache on, ahead of the first compilation that is to be found again.

    Args:
        setting: `train.compile_cache`: a folder; "" = none; "auto" = CACHE_DIR/compiled on
            accelerators, none on CPUs (they compile quickly, and a program made for one CPU may not
            run on another), and where JAX_COMPILATION_CACHE_DIR is set, that one on all devices.
        cache_dir: the project's cache.

    Returns:
        The folder in use; None = no cache.

    Raises:
        ValueError: nothing can be written there.
    """
    folder = _folder(setting, cache_dir)
    if folder is not None:
        _require_writable(folder, setting)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        logging.info("compiled programs are kept in %s", folder)
    if jax.config.jax_compilation_cache_dir != (wanted := folder and str(folder)):
        jax.config.update("jax_compilation_cache_dir", wanted)
        compilation_cache.reset_cache()  # it looks at the setting once
    return folder


def _folder(setting: str, cache_dir: pathlib.Path) -> pathlib.Path | None:
    if setting != AUTO:
        return pathlib.Path(setting).expanduser().absolute() if setting else None
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(given)
    return None if jax.default_backend() == "cpu" else cache_dir.absolute() / "compiled"


def _require_writable(folder: pathlib.Path, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise ValueError(
            f"train.compile_cache = {setting!r}: {error}; expected a folder that can be "
            "written to, 'auto', or '' for none"
        ) from error
