from __future__ import annotations

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from roam_jax.train import memory, throughput
from roam_jax.train.progress import Progress
from roam_jax.train.throughput import Throughput


def made(flops, **changes) -> Throughput:
    fields = {
        "tokens_per_step": 1000,
        "examples_per_step": 8,
        "devices": 4,
        "device_kind": "NVIDIA A100-SXM4-40GB",
    }
    return Throughput(flops, **(fields | changes))


def test_the_share_is_flops_a_second_over_the_rate(monkeypatch, caplog):
    monkeypatch.setattr(throughput, "matmul_rate", lambda: 1e11)
    # Steps of 1 and of 2 rounds, 3 seeds: (2 x 1 + 3 x 2) x 3 = 24 GFLOP in 2 s. The devices are
    # of one CPU, which has its rate once.
    log = made(lambda rounds: rounds * 1e9, runs=3, devices=2, device_kind="cpu")
    assert log.peak == 1e11
    caplog.set_level("INFO")
    log.log_share((1, 1, 2, 2, 2), seconds=2.0)
    assert caplog.messages[-1] == (
        "5 steps of 3 seeds in 2.0 s, 12.0 GFLOP/s, 12.0 % of this machine's matrix-product rate"
    )


def test_the_share_of_a_known_accelerator_is_of_its_data_sheet(monkeypatch, caplog):
    monkeypatch.setattr(throughput, "_whole", lambda devices: devices)
    log = made(lambda rounds: 312e12)
    caplog.set_level("INFO")
    log.log_share([1] * 60, seconds=90.0)
    assert caplog.messages[-1] == (
        "60 steps in 1.5 min, 208000.0 GFLOP/s, 16.7 % of a100-40's data sheet"
    )


@pytest.mark.parametrize("flops", [None, lambda rounds: float("nan")])
def test_no_share_of_what_is_not_counted(flops, caplog):
    caplog.set_level("INFO")
    made(flops).log_share([1], seconds=1.0)
    assert caplog.messages == []


def test_figures_by_hand():
    # 3 runs, each 8 rows of 1000 cells and 2 GFLOP a round, in half a second.
    found = made(lambda rounds: 2e9 * rounds, runs=3).figures(0.5, 2)
    assert found["steps_per_second"] == 2
    assert found["examples_per_second"] == 48
    assert found["tokens_per_second"] == 6000
    assert found["flops_per_second"] == 24e9


def test_mfu_is_a_share_of_the_data_sheet_of_all_devices(monkeypatch):
    monkeypatch.setattr(throughput, "_whole", lambda devices: devices)  # not of one CPU
    flops = 4 * 312e12 / 10  # a tenth of a second of four A100s
    assert made(lambda _: flops).figures(1.0, 1)["mfu"] == pytest.approx(0.1)
    assert made(lambda _: flops, dtype=jnp.float32).figures(1.0, 1)["mfu"] == pytest.approx(0.2)


def test_a_device_that_no_table_has_is_measured(monkeypatch):
    monkeypatch.setattr(throughput, "matmul_rate", lambda: 5e10)
    assert made(lambda _: 1e10, device_kind="cpu").figures(1.0, 1)["mfu"] == pytest.approx(0.2)


def test_what_is_not_known_is_left_out():
    assert set(made(None, tokens_per_step=0).figures(1.0, 1)) == {
        "steps_per_second",
        "examples_per_second",
    }
    assert made(None).figures(0.0, 1) == {}


def test_flops_are_counted_once_for_each_number_of_rounds():
    asked = []
    log = made(lambda rounds: asked.append(rounds) or 1e9)
    for rounds in (1, 1, 2, 2):
        log.figures(1.0, rounds)
    assert asked == [1, 2]


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


def test_a_run_that_goes_back_counts_what_it_computed(monkeypatch, caplog):
    from roam_jax.train import progress as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO")
    progress = Progress(0, 100)
    for _ in range(10):
        now[0] += 1
        progress.advance()
    progress.go_back(5)
    assert progress.lap_steps == 0
    now[0] += module.LINE_EVERY_S + 1 - 10
    progress.advance()  # the 11th computed step, in 31 s, is step 6
    # 94 steps are left, at 31 / 11 s.
    assert caplog.messages == ["step 6 of 100, loss nan, 2.82 s a step, 04:24 left"]


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


def test_the_fullest_device_counts():
    stats = [
        {"bytes_in_use": now, "peak_bytes_in_use": most, "bytes_limit": 1000}
        for now, most in ((10, 300), (20, 200))
    ]
    assert memory.fullest(stats) == {"memory_bytes": 20, "peak_memory_bytes": 300}


def test_memory_of_this_process_where_devices_do_not_tell():
    found = memory.used_bytes(jax.devices())
    rss = psutil.Process().memory_info().rss
    np.testing.assert_allclose(found["memory_bytes"], rss, rtol=0.05)
    assert found["peak_memory_bytes"] >= found["memory_bytes"]


def test_the_peak_outlives_what_was_freed():
    code = (
        "import numpy as np; from roam_jax.train.memory import resident_bytes\n"
        "x = np.ones(200_000_000, np.uint8); del x\n"
        "now, most = resident_bytes(); print(most - now)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    np.testing.assert_allclose(int(done.stdout), 200e6, rtol=0.2)
