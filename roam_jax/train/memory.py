"""Bytes that a compiled step takes, those that there are, and those that are in use."""

from __future__ import annotations

import os
import pathlib
import resource
import sys
from collections.abc import Mapping, Sequence

import jax

MEMINFO, STATUS = pathlib.Path("/proc/meminfo"), pathlib.Path("/proc/self/status")
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


def used_bytes(devices: Sequence[jax.Device]) -> dict[str, int]:
    """What is in use now and what was at most, as figures of metrics.jsonl.

    Args:
        devices: of this process; the fullest of them counts.

    Returns:
        "memory_bytes" and "peak_memory_bytes": on each accelerator by its allocator; of CPUs, which
        do not tell, what this process has in memory.
    """
    return fullest([device.memory_stats() or {} for device in devices])


def fullest(stats: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The same from what `jax.Device.memory_stats` says of each device; {} = it does not tell."""
    if all("peak_bytes_in_use" in each for each in stats):
        now, most = (max(s[key] for s in stats) for key in ("bytes_in_use", "peak_bytes_in_use"))
    else:
        now, most = resident_bytes()
    return {"memory_bytes": now, "peak_memory_bytes": most}


def resident_bytes() -> tuple[int, int]:
    """What this process has in memory now, and the most that it had."""
    # The peak that getrusage tells begins with the memory of the process that started this one.
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        now, most = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, most
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most *= 1 if sys.platform == "darwin" else 1024
    return most, most
