"""Several processes that train one run, each on the devices of its host.

`start` connects them. What they must agree on before the first step goes through the key-value
store of JAX's coordinator, with a bounded wait, so that all of them stop with the same message; a
wish to stop goes through the devices, as every step does. In a process that runs alone all of it
returns at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from roam_jax.train.cluster import WAIT_SECONDS, find_place
from roam_jax.train.meeting import meet
from roam_jax.train.workdir import FINGERPRINTS, LATENTS, differences, plain

# As long as JAX waits for processes that have met to connect, and for each other as they end.
CONNECT_SECONDS, SHUTDOWN_SECONDS = 120, 60
# A process that is not heard of for so long is lost, and JAX ends the others.
HEARTBEAT_SECONDS = 100
# How often a process that waits asks whether another one has stopped.
POLL_SECONDS = 1.0
# The same of the thread that ends a process which others have left; how long it then lets the main
# thread find out by itself, and waits for the others to do so; process 0 goes last.
WATCH_SECONDS, GRACE_SECONDS, LEAVE_SECONDS, LAST_SECONDS = 2.0, 5.0, 15.0, 0.5
# A folder that hosts share may show a new file late.
SHARED_SECONDS = 60.0
# Where files lie may differ between hosts: what they hold is compared by fingerprint.
PLACES = ("backbone.path", "data.root", "data.declaration", "data.text", "data.latents")
SAME_PROVENANCE = ("git_commit", "packages", FINGERPRINTS, LATENTS)
FAILED = "roam_jax/failed"

_uses: collections.Counter[str] = collections.Counter()
_leaving = threading.Event()


def start(options: argparse.Namespace) -> None:
    """Connects the processes of a run; does nothing in one that runs alone.

    Must be called before anything asks JAX for its devices.

    Args:
        options: with what `cluster.add_options` adds.

    Raises:
        ValueError: flags that do not fit, or processes that were started with other ones.
        TimeoutError: process 0 or another one was not there within `--wait_seconds`.
    """
    place = find_place(options, os.environ)
    if place is None:
        return
    meet(place, options.wait_seconds)
    # JAX would take SIGTERM for itself; here it is the loop that saves and stops (`agree`).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=place.devices,  # none named: all; None would mean one a task
        cluster_detection_method="deactivate",
        initialization_timeout=CONNECT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    logging.info(
        "%d processes are connected: %d of %d devices are of process %d",
        place.processes,
        jax.local_device_count(),
        jax.device_count(),
        place.process,
    )
    if not is_first():
        logging.set_verbosity(logging.WARNING)  # all would say the same
    threading.Thread(target=_watch, name="hosts", daemon=True).start()


def are_several() -> bool:
    """Whether `start` has connected this process with others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def agree(requested: int) -> int:
    """The largest number over all processes, all of which must call this between the same steps.

    A signal reaches one host first, but all must stop after the same step.
    """
    if jax.process_count() == 1:
        return requested
    return int(multihost_utils.process_allgather(np.int32(requested)).max())


def exchange(name: str, value: Any, *, seconds: float = WAIT_SECONDS) -> list[Any]:
    """What each process has to say, in the order of the processes; all must call this.

    Args:
        name: what it is about, for the message.
        value: of this process, JSON-serialisable.
        seconds: how long to wait for the others.

    Raises:
        TimeoutError: a process did not answer; names it.
        ValueError: a process has stopped; tells why.
    """
    count = jax.process_count()
    if count == 1:
        return [value]
    key = _key(name)
    _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    deadline = time.monotonic() + seconds
    return [json.loads(_wait_for(f"{key}/{i}", i, name, deadline, seconds)) for i in range(count)]


def of_first(name: str, function: Callable[[], Any]) -> Any:
    """What a function returns in the first process, in all of them; only that one calls it.

    The others wait as long as it takes, or until the first process has ended.

    Args:
        name: what it is about, for the message.
        function: returns something JSON-serialisable.

    Raises:
        ValueError: the first process has stopped; tells why.
    """
    if jax.process_count() == 1:
        return function()
    key = _key(name)
    if is_first():
        value = function()
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_wait_for(key, 0, name, float("inf"), float("inf")))


def require_same(
    config: ConfigDict, provenance: Mapping[str, Any], *, seconds: float = WAIT_SECONDS
) -> None:
    """Refuses processes that were started with other configs, code or data, in all of them alike.

    Args:
        config: the whole config; where files lie (`PLACES`) may differ.
        provenance: of it, `SAME_PROVENANCE` are compared.
        seconds: how long to wait for the others.

    Raises:
        ValueError: names what differs, with its values and processes; the same in all processes.
        TimeoutError: a process did not answer; names it.
    """
    if jax.process_count() == 1:
        return
    known = {name: provenance[name] for name in SAME_PROVENANCE if name in provenance}
    every = exchange("config", plain(plain(config) | known), seconds=seconds)
    differing = sorted({leaf for other in every[1:] for leaf in differences(every[0], other)})
    listed = [
        f"{leaf}: {_by_value([_leaf(one, leaf) for one in every])}"
        for leaf in differing
        if leaf not in PLACES
    ]
    if listed:
        raise ValueError(
            f"the {len(every)} processes do not run the same: {'; '.join(listed)}. Expected one "
            "command, one commit and one environment on all hosts"
        )


def require_shared(folder: pathlib.Path) -> None:
    """Refuses a folder that is another one on another host.

    Args:
        folder: of the run, which is there on the first host.

    Raises:
        ValueError: names the processes that do not see it; the same in all processes.
    """
    if jax.process_count() == 1:
        return
    name = f".shared-{uuid.uuid4().hex}"
    token = folder / of_first("shared folder", lambda: (folder / name).touch() or name)
    deadline = time.monotonic() + SHARED_SECONDS
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    every = exchange("shared folder seen", seen, seconds=SHARED_SECONDS + WAIT_SECONDS)
    if is_first():
        token.unlink()
    if blind := [str(i) for i, sees in enumerate(every) if not sees]:
        raise ValueError(
            f"--workdir {folder}: process {', '.join(blind)} does not see what process 0 wrote "
            "there; expected a folder that all hosts share"
        )


def whole_copy(tree: Any) -> Any:
    """Host copies of arrays that are spread over processes, in each of them.

    All processes must call this. One array at a time is whole on the devices.
    """
    return jax.tree.map(_whole, tree)


def _whole(array: jax.Array) -> np.ndarray:
    if not array.is_fully_addressable and not array.is_fully_replicated:
        everywhere = array.sharding.update(spec=PartitionSpec())
        array = jax.jit(_unchanged, out_shardings=everywhere)(array)
    return np.asarray(array if array.is_fully_addressable else array.addressable_data(0))


def _unchanged(array: jax.Array) -> jax.Array:
    return array


def stop_all(message: str, code: int) -> NoReturn:
    """Ends this process because of an error, and with it the others of the run.

    They are told why; those that wait for a collective operation of this one would never return.

    Args:
        message: the error.
        code: exit code of this process.
    """
    _leaving.set()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first
        _client().key_value_set(FAILED, f"process {jax.process_index()} stopped: {message}")
    _leave(code)


def failure() -> str:
    """What the first process that stopped because of an error has said; empty where none has."""
    client = _client()
    try:
        return client.key_value_try_get(FAILED) if client else ""
    except jax.errors.JaxRuntimeError:  # not there
        return ""


def _watch() -> None:
    """In a thread: ends this process some time after another one has stopped because of an error.

    Its main thread may wait for that one within a step, where no exception reaches it.
    """
    while not (why := failure()):
        if _leaving.wait(WATCH_SECONDS) or not jax.distributed.is_initialized():
            return
    if not _leaving.wait(GRACE_SECONDS):
        logging.error("%s", why)
        _leave(2)


def _leave(code: int) -> NoReturn:
    """Ends the process at once, but not before all others have heard why.

    JAX would wait for them as if they had finished, and the coordinator ends with process 0.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # a process that hears nothing any more
        _client().wait_at_barrier("roam_jax/leave", int(1000 * LEAVE_SECONDS))
    time.sleep(LAST_SECONDS if is_first() else 0)
    os._exit(code)


def _client() -> Any:
    """JAX has no public name for its coordinator's key-value store; Orbax takes it here as well."""
    return distributed.global_state.client


def _key(name: str) -> str:
    """A key that is new, and the same in all processes, which ask in the same order."""
    _uses[name] += 1
    return f"roam_jax/{name}/{_uses[name]}"


def _wait_for(key: str, process: int, name: str, deadline: float, seconds: float) -> str:
    """What a process says under a key."""
    while True:
        left = min(POLL_SECONDS, max(0.001, deadline - time.monotonic()))
        try:
            return _client().blocking_key_value_get(key, int(1000 * left))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if why := failure():
            raise ValueError(why)
        if time.monotonic() >= deadline:
            raise TimeoutError(
                f"{name}: process {process} of {jax.process_count()} did not answer within "
                f"{seconds:g} s"
            )


def _leaf(tree: Mapping[str, Any], dotted: str) -> Any:
    """Value of a leaf as `differences` names it; its parts may hold dots."""
    if dotted in tree:
        return tree[dotted]
    for name, part in tree.items():
        if dotted.startswith(f"{name}.") and isinstance(part, Mapping):
            return _leaf(part, dotted.removeprefix(f"{name}."))
    return "(absent)"


def _by_value(values: Sequence[Any]) -> str:
    """0.1 in process 0, 2; 0.2 in process 1."""
    where: dict[str, list[str]] = {}
    for process, value in enumerate(values):
        where.setdefault(json.dumps(value), []).append(str(process))
    return ", ".join(f"{value} in process {'+'.join(found)}" for value, found in where.items())
