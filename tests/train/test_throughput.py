from __future__ import annotations

import time

import jax
import numpy as np
import psutil

from roam_jax.train import memory, throughput
from roam_jax.train.progress import Progress


def test_the_share_is_flops_a_second_over_the_rate(monkeypatch, caplog):
    monkeypatch.setattr(throughput, "matmul_rate", lambda: 5e10)
    caplog.set_level("INFO")
    # Steps of 1 and of 2 rounds, 3 seeds: (2 x 1 + 3 x 2) x 3 = 24 GFLOP in 2 s on 2 devices.
    throughput.log_share(
        lambda rounds: rounds * 1e9, (1, 1, 2, 2, 2), runs=3, seconds=2.0, devices=2
    )
    assert caplog.messages == [
        "5 steps of 3 seeds in 2.0 s, 12.0 GFLOP/s, 12.0 % of this machine's matrix-product rate"
    ]


def test_the_rate_is_that_of_a_product():
    side = throughput.SIDE
    a = np.ones((side, side), np.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    # Within what a busy machine allows.
    assert 0.2 < throughput.matmul_rate(0.05) * min(seconds) / (2 * side**3) < 5


def test_laps_add_up_without_what_is_between_them():
    progress = Progress(0, 4)
    for _ in range(2):
        time.sleep(0.02)
        progress.advance()
        progress.lap(0.0)
        time.sleep(0.1)  # evaluation
        progress.restart_lap()
    assert 0.04 <= progress.seconds < 0.15


def test_memory_of_the_host():
    found, expected = memory.host_bytes(), psutil.virtual_memory().available
    # A container may have less.
    assert 0 < found < 1.1 * expected
    devices = jax.devices()
    left = memory.available_bytes(devices) * len(devices)
    np.testing.assert_allclose(left, 0.9 * memory.host_bytes(), rtol=0.05)


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    for name, text in (("max", "3000\n"), ("current", "1000\n"), ("none", "max\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text("MemTotal:   9 kB\nMemAvailable:   5 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "none", tmp_path / "current"),))
    assert memory.host_bytes() == 5 * 1024
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    assert memory.host_bytes() == 2000


def test_memory_of_a_program_by_hand():
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    assert memory.needed_bytes(jax.jit(lambda x, y: x + y).lower(x, x).compile()) == 12_000
    donated = jax.jit(lambda x, y: x + y, donate_argnums=0).lower(x, x).compile()
    assert memory.needed_bytes(donated) == 8_000
