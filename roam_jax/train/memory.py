"""Bytes that a compiled step takes, and those that there are."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import jax

MEMINFO = pathlib.Path("/proc/meminfo")
# Limits of a container, of either version of control groups: what it may have and what it has.
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Share that is left for what XLA does not count: batches ahead, evaluation, saving.
LEFT = 0.1


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, results and temporaries on each device, donated arguments once."""
    memory = compiled.memory_analysis()
    if memory is None:  # a backend that does not tell
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def available_bytes(devices: Sequence[jax.Device]) -> int:
    """What a program may take on each of these devices; CPU devices share the host's."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    available = min(limits) if all(limits) else host_bytes() // len(devices)
    return int(available * (1 - LEFT))


def host_bytes() -> int:
    """Memory of this machine, or of its container, that is not in use."""
    found = []
    if MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    else:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit, used in CGROUPS:
        try:
            found.append(int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(0, min(found))
