"""What is freed and taken again costs no page faults."""

import resource

import numpy as np
import pytest

from roam_jax.data import allocator


def faults_of_a_window() -> int:
    """Page faults of buffers as large as a record and its frames, freed at the end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [np.ones(size, np.uint8) for size in (2 * 10**6, 2 * 10**6, *[200_000] * 9)]
    del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again():
    if not hasattr(allocator.ctypes.CDLL(None), "mallopt"):
        pytest.skip("no glibc")
    allocator.keep_freed_memory()
    faults_of_a_window()
    # Each fresh page of 4 KiB would be one: 1,400.
    assert sorted(faults_of_a_window() for _ in range(9))[4] < 100


def test_other_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
