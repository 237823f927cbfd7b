"""Shared fixtures; shape annotations are checked at run time here, and only here."""

import os
import pathlib

# Eight fake CPU devices, for the sharding tests, and quick compiles, which are most of the suite's
# time: without fusion emitters they take less than half. Must be set before JAX starts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401

install_import_hook("roam_jax", "tests.typechecker.check")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
BRIDGE = ROOT.parent / "shared" / "data" / "bridge_dataset" / "1.0.0"


def pytest_collection_modifyitems(items):
    """Leaves what holds to the last bit to a run with XLA's own fusions."""
    if "fusion_emitters=false" in os.environ["XLA_FLAGS"]:
        skip = pytest.mark.skip(reason="exact: `make test` runs it apart, see Makefile")
        for item in items:
            if item.get_closest_marker("exact"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def bridge_root() -> pathlib.Path:
    """The real BridgeData V2 episodes, where they are at hand."""
    if not BRIDGE.exists():
        pytest.skip(f"no real Bridge episodes at {BRIDGE}")
    return BRIDGE


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> pathlib.Path:
    """A converted folder with random weights of a very small CogVideoX."""
    from tests.tiny_weights import write_weights

    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def robot_root() -> pathlib.Path:
    """The real episodes where they are at hand, else the embedded ones."""
    from roam_jax.data.embedded import ensure_embedded

    return BRIDGE if BRIDGE.exists() else ensure_embedded()


@pytest.fixture
def robot_config(weights, robot_root):
    """The tiny config on robot episodes, with random weights."""
    from roam_jax.cli.arguments import load_config

    config = load_config(str(ROOT / "configs/bridge_3loop.py:tiny"))
    config.backbone.path = str(weights)
    config.data.root = str(robot_root)
    config.train.batch_size = 4
    return config
