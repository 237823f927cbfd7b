"""Trained runs, each a workdir and what trained in it by name."""

import pytest

from tests.convert.runs import write_run
from tests.evaluate.conftest import write_toy

# What canvas-engineering can express.
CE_LIKE = {"loop.gate": "sigmoid", "decoder.kind": "pooled"}


@pytest.fixture(scope="package")
def make_run(weights, tmp_path_factory):
    root = write_toy(tmp_path_factory.mktemp("toy") / "1.0.0", seed=0)

    def make(changes, **options):
        path = tmp_path_factory.mktemp("runs") / "run"
        return write_run(path, weights=weights, root=root, changes=changes, **options)

    return make


@pytest.fixture(scope="package")
def graft_run(make_run):
    """With regions that canvas-engineering does not have; steps 3 and 5."""
    return make_run({"canvas.proprio": True}, steps=(3, 5))


@pytest.fixture(scope="package")
def half_run(make_run):
    """Trained the backbone's output side as well."""
    return make_run({"freeze": "half", **CE_LIKE})


@pytest.fixture(scope="package")
def ce_run(make_run):
    return make_run(CE_LIKE)
