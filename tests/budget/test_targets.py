"""What is compiled for, with and without JAX's CUDA plugin."""

import jax
import pytest

from roam_jax.accelerators import ACCELERATORS, by_device_kind, by_name
from roam_jax.budget import targets


def test_cuda_only_where_the_plugin_and_the_accelerator_are_known(monkeypatch):
    monkeypatch.setattr(targets, "has_plugin", lambda: False)
    assert targets.choose_platform("auto", by_name("a100-40")) == "cpu"
    with pytest.raises(ValueError, match="plugin is not installed.*jax\\[cuda12\\]"):
        targets.choose_platform("cuda", by_name("a100-40"))
    monkeypatch.setattr(targets, "has_plugin", lambda: True)
    assert targets.choose_platform("auto", by_name("a100-40")) == "cuda"
    assert targets.choose_platform("cpu", by_name("a100-40")) == "cpu"
    assert targets.choose_platform("auto", by_name("l4")) == "cpu"
    with pytest.raises(ValueError, match="not known well enough is l4"):
        targets.choose_platform("cuda", by_name("l4"))


def test_as_many_cpus_as_are_asked_for():
    found = targets.compile_devices("cpu", by_name("a100-40"), count=4, per_node=8)
    assert list(found) == jax.devices("cpu")[:4]
    with pytest.raises(ValueError, match="10000 devices are needed.*jax_num_cpu_devices"):
        targets.compile_devices("cpu", by_name("a100-40"), count=10_000, per_node=8)


@pytest.mark.skipif(not targets.has_plugin(), reason="needs jax[cuda12], which needs no GPU")
def test_gpus_that_are_not_there():
    found = targets.compile_devices("cuda", by_name("a100-40"), count=16, per_node=8)
    assert len(found) == 16
    assert {device.device_kind for device in found} == {"NVIDIA A100-SXM4-40GB"}


def test_accelerators_are_found_by_both_names():
    for each in ACCELERATORS:
        assert by_name(each.name) is each
        assert all(by_device_kind(kind) is each for kind in each.device_kinds)
    assert by_device_kind("cpu") is None
    with pytest.raises(ValueError, match="accelerator = 'a100-4': expected one of.*a100-40"):
        by_name("a100-4")
