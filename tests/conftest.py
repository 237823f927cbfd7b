"""Shared fixtures; shape annotations are checked at run time here, and only here."""

import os
import pathlib

# Eight fake CPU devices, for the sharding tests; must be set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("roam_jax", "beartype.beartype")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
BRIDGE = ROOT.parent / "shared" / "data" / "bridge_dataset" / "1.0.0"


@pytest.fixture(scope="session")
def bridge_root() -> pathlib.Path:
    """The real BridgeData V2 episodes, where they are at hand."""
    if not BRIDGE.exists():
        pytest.skip(f"no real Bridge episodes at {BRIDGE}")
    return BRIDGE
