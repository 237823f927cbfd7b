"""Devices to compile for that need not be there: fake CPUs, or GPUs of a data sheet.

XLA compiles for a GPU without one where JAX's CUDA plugin is installed (`pip install
"jax[cuda12]"`); all that it wants to know is below. Without the plugin the step is compiled for as
many CPUs, which multiply bfloat16 as float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from roam_jax.accelerators import Accelerator

# What may be asked for.
PLATFORMS = ("auto", "cuda", "cpu")
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

# Streaming multiprocessors, their shared memory and the most of it that a block takes, second-level
# cache, clock (GHz), compute capability; by the names of `accelerators`.
_PROCESSORS = {
    "a100-40": (108, 167_936, 166_912, 40 << 20, 1.41, (8, 0)),
    "a100-80": (108, 167_936, 166_912, 40 << 20, 1.41, (8, 0)),
    "h100": (132, 233_472, 232_448, 50 << 20, 1.98, (9, 0)),
    "h200": (132, 233_472, 232_448, 50 << 20, 1.98, (9, 0)),
}


def has_plugin() -> bool:
    """Whether JAX can compile for CUDA here."""
    return any(importlib.util.find_spec(name) is not None for name in PLUGINS)


def choose_platform(asked: str, accelerator: Accelerator) -> str:
    """ "cuda" or "cpu": what a step is compiled for.

    Args:
        asked: one of `PLATFORMS`; "auto" = CUDA where that can be done.
        accelerator: to compile for.

    Raises:
        ValueError: CUDA is asked for, and the plugin is missing or the accelerator is none of those
            that are known well enough.
    """
    known, plugin = accelerator.name in _PROCESSORS, has_plugin()
    if asked == "cuda" and not plugin:
        raise ValueError(
            "--compile_for cuda: JAX's CUDA plugin is not installed; expected pip install "
            '"jax[cuda12]" (no GPU is needed), or --compile_for cpu'
        )
    if asked == "cuda" and not known:
        raise ValueError(
            f"--compile_for cuda: not known well enough is {accelerator.name}; expected one of "
            f"{', '.join(_PROCESSORS)} as --accelerator, or --compile_for cpu"
        )
    return "cuda" if asked != "cpu" and plugin and known else "cpu"


def compile_devices(
    platform: str, accelerator: Accelerator, *, count: int, per_node: int
) -> Sequence[jax.Device]:
    """Devices that a step can be compiled for, not run on.

    Args:
        platform: "cuda" or "cpu", from `choose_platform`.
        accelerator: of the first.
        count: how many.
        per_node: of them in a node.

    Raises:
        ValueError: too few fake CPUs were asked for before JAX started.
    """
    if platform == "cuda":
        nodes = -(-count // per_node)
        each = count // nodes
        topology = topologies.get_topology_desc(
            accelerator.name,
            "cuda",
            target_config=_target(accelerator),
            topology=f"1x{nodes}x{each}",
        )
        return topology.devices
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"{count} devices are needed and JAX started with {len(devices)} CPUs: set "
            f"jax_num_cpu_devices to {count} before anything uses JAX"
        )
    return devices[:count]


def _target(accelerator: Accelerator) -> str:
    """XLA's description of a GPU, as text of its `GpuTargetConfigProto`."""
    cores, shared, most, cache, clock, (major, minor) = _PROCESSORS[accelerator.name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if major == 8 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {accelerator.bandwidth:.0f}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {accelerator.memory}
  shared_memory_per_block_optin: {most}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{accelerator.device_kinds[0]}"
"""
