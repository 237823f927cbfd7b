from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from roam_jax.train import compile_cache

# Compiles one program and prints hits, misses and seconds.
CHILD = """
import pathlib, sys, time
import jax, jax.numpy as jnp
from roam_jax.train import compile_cache
compile_cache.LEAST_SECONDS = 0.0
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
folder = compile_cache.enable(sys.argv[1], pathlib.Path(sys.argv[2]))

def step(x):
    for _ in range(40):
        x = jnp.tanh(x @ x.T) + jnp.sort(x, axis=0)
    return x.sum()

x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
lowered = jax.jit(jax.grad(step)).lower(x)
began = time.perf_counter()
lowered.compile()
seconds = time.perf_counter() - began
hits, misses = (sum(e.endswith(end) for e in events) for end in ("cache_hits", "cache_misses"))
print(folder, hits, misses, seconds)
"""


@pytest.fixture(autouse=True)
def restored():
    """The suite's own setting comes back."""
    yield
    compile_cache.enable("", pathlib.Path())


def start(setting, cache, **environment):
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
    done = subprocess.run(
        [sys.executable, "-c", CHILD, setting, str(cache)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=True,
    )
    folder, hits, misses, seconds = done.stdout.split()
    return folder, int(hits), int(misses), float(seconds)


def test_a_second_start_compiles_nothing(tmp_path):
    folder = tmp_path / "new" / "programs"
    first, second = (start(str(folder), tmp_path / "unused") for _ in range(2))
    assert first[:3] == (str(folder), 0, 1)
    assert second[:3] == (str(folder), 1, 0)
    assert second[3] < first[3] / 2
    assert not (tmp_path / "unused").exists()


def test_the_environment_decides_where_the_config_does_not(tmp_path):
    theirs = str(tmp_path / "theirs")
    assert start("auto", tmp_path, JAX_COMPILATION_CACHE_DIR=theirs)[:3] == (theirs, 0, 1)
    assert start("", tmp_path, JAX_COMPILATION_CACHE_DIR=theirs)[:3] == ("None", 0, 0)


def test_auto_is_none_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert compile_cache.enable("auto", tmp_path) is None
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


def test_auto_is_in_the_projects_cache_on_an_accelerator(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compile_cache.enable("auto", tmp_path) == tmp_path / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"train\.compile_cache = '.*/file/x'.*expected a folder"):
        compile_cache.enable(str(tmp_path / "file" / "x"), tmp_path)
