"""Diffusers' own modules, as the reference."""

import pytest

from tests.cogvideox.diffusers_models import TINY, random_transformer


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("diffusers")
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(torch):
    return random_transformer(TINY)
