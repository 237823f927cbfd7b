"""Which process of a run this is: by flags, or by what SLURM or Open MPI say.

Nothing here starts JAX, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

WAIT_SECONDS = 300
# The ports from which a job's number takes one where no flag says it; JAX takes the same.
FIRST_PORT, PORTS = 61440, 4096
# Flags that say a process's place, and fields of `Place`.
PLACE = ("coordinator", "processes", "process")


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Args:
        coordinator: HOST:PORT, where process 0 listens.
        processes: of the run.
        process: number of this one.
        devices: which of the host's accelerators this process uses; () = all that it sees.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] = ()

    @property
    def host(self) -> str:
        """Of process 0."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Where process 0 listens."""
        return int(self.coordinator.rpartition(":")[2])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --processes, --process and --wait_seconds."""
    group = parser.add_argument_group(
        "several processes", "under SLURM (srun) and Open MPI (mpirun) they find each other"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="processes of the run")
    group.add_argument("--process", type=int, metavar="I", help="number of this one, 0 to N - 1")
    group.add_argument(
        "--wait_seconds",
        type=float,
        default=WAIT_SECONDS,
        metavar="S",
        help=f"how long processes wait for each other as a run starts (default {WAIT_SECONDS})",
    )


def find_place(options: argparse.Namespace, environment: Mapping[str, str]) -> Place | None:
    """This process's place, by the flags and, for what they do not say, by the environment.

    Args:
        options: with what `add_options` adds.
        environment: variables of this process.

    Returns:
        The place; None of a process that runs alone.

    Raises:
        ValueError: flags that are incomplete or out of range, or a launcher that does not say where
            process 0 is.
    """
    if not options.wait_seconds > 0:
        raise ValueError(f"--wait_seconds {options.wait_seconds:g}: expected more than 0")
    launcher, found = _launched(environment)
    given = {name: getattr(options, name) for name in PLACE}
    given = {name: value for name, value in given.items() if value is not None}
    if not given and found.get("processes", 1) == 1:
        return None
    known = found | given
    missing = [f"--{name}" for name in PLACE if known.get(name) is None]
    if missing:
        said = ", ".join(f"--{name} {value}" for name, value in given.items())
        raise ValueError(f"{said or launcher}: expected {' and '.join(missing)} with it")
    place = Place(*(known[name] for name in PLACE), found.get("devices", ()))
    _check(place)
    return place if place.processes > 1 else None


def _check(place: Place) -> None:
    if place.processes < 1:
        raise ValueError(f"--processes {place.processes}: expected at least 1")
    if not 0 <= place.process < place.processes:
        raise ValueError(
            f"--process {place.process} of --processes {place.processes}: expected 0 to "
            f"{place.processes - 1}"
        )
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"--coordinator {place.coordinator}: expected HOST:PORT, such as node001:8476"
        )


def _launched(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Name of the launcher, and what it says of the place; mpirun within a SLURM job is mpirun."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "Open MPI", _of_open_mpi(environment)
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return "SLURM", _of_slurm(environment)
    return "", {}


def _of_open_mpi(environment: Mapping[str, str]) -> dict[str, Any]:
    """Open MPI 4 says where mpirun runs, beside process 0; Open MPI 5 does not."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri)
    coordinator = None
    if host:
        job = int(uri.partition(".")[0]) // PORTS  # Open MPI numbers jobs in steps of 4096
        name = host[1] or f"[{host[2]}]"
        coordinator = f"{name}:{FIRST_PORT + job % PORTS}"
    local = int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
    tasks = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    return {
        "coordinator": coordinator,
        "processes": int(environment["OMPI_COMM_WORLD_SIZE"]),
        "process": int(environment["OMPI_COMM_WORLD_RANK"]),
        "devices": _devices(environment, tasks=tasks, local=local),
    }


def _of_slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """Of a step that srun has started; process 0 is on its first node."""
    job = int(environment["SLURM_JOB_ID"])
    node = int(environment.get("SLURM_NODEID", 0))
    tasks = _expanded(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return {
        "coordinator": f"{_first_node(environment['SLURM_STEP_NODELIST'])}:"
        f"{FIRST_PORT + job % PORTS}",
        "processes": int(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])),
        "process": int(environment["SLURM_PROCID"]),
        "devices": _devices(
            environment, tasks=tasks[node], local=int(environment["SLURM_LOCALID"])
        ),
    }


def _devices(environment: Mapping[str, str], *, tasks: int, local: int) -> tuple[int, ...]:
    """A device each for the tasks of one host, unless each sees its own alone."""
    seen = environment.get("CUDA_VISIBLE_DEVICES")  # None: all of them
    return (local,) if tasks > 1 and (seen is None or "," in seen) else ()


def _first_node(nodes: str) -> str:
    """Of SLURM's list: "a1", "a1,b2", "a[01-04,07],b2" or "a[01-04]-ib"."""
    first = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    return f"{first[1]}{first[2] or ''}{first[3]}"


def _expanded(tasks: str) -> list[int]:
    """Tasks of each node, of SLURM's "2(x3),1"."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]
