"""Declarations as a user makes them."""

import jaxtyping
import pytest


@pytest.fixture
def no_annotation_checks():
    """Annotations are checked under tests alone; without them, what a user's mistake meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
