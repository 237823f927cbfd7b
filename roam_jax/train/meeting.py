"""Processes of a run meet before JAX connects them.

JAX ends a process without a message of ours where the others cannot be reached. So they first meet
over plain TCP, on the port that JAX takes over when all are there: each says its number to process
0, which then lets all of them go on, or tells all of them the same reason why not.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from roam_jax.train.cluster import Place

# Between two attempts to reach process 0.
RETRY_SECONDS = 0.25
# Who has connected says its number at once; process 0 answers so long after all have waited.
HELLO_SECONDS, ANSWER_SECONDS = 5.0, 5.0
PROGRAM = "roam_jax"
LONGEST_LINE = 1 << 16


def meet(place: Place, seconds: float) -> None:
    """Returns when all processes of the run are there.

    Args:
        place: of this process.
        seconds: how long it waits for the others.

    Raises:
        TimeoutError: process 0 is out of reach, or processes did not come.
        ValueError: processes that were started with other flags, two with one number, or a port
            that process 0 cannot listen on.
    """
    logging.info(
        "process %d of %d: waiting up to %g s for the others, coordinator %s",
        place.process,
        place.processes,
        seconds,
        place.coordinator,
    )
    if place.process == 0:
        _receive(place, seconds)
    else:
        _report(place, seconds)


def _receive(place: Place, seconds: float) -> None:
    """Process 0: waits for the others, then answers all of them."""
    arrived: dict[int, socket.socket] = {}
    problem = ""
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(_listen(place))
        for client in _clients(listening, time.monotonic() + seconds):
            opened.enter_context(client)
            hello = _read_line(client, HELLO_SECONDS)
            if hello is None or hello.get("program") != PROGRAM:
                continue  # a port scan, or a process that was ended
            if problem := _misfit(hello, place, arrived):
                _write_line(client, {"problem": problem})
                break
            arrived[hello["process"]] = client
            if len(arrived) == place.processes - 1:
                break
        missing = sorted({*range(1, place.processes)} - {*arrived})
        late = not problem and bool(missing)
        if late:
            problem = (
                f"coordinator {place.coordinator}: {_numbered(missing)} of {place.processes} did "
                f"not come within {seconds:g} s; --wait_seconds S waits longer"
            )
        for client in arrived.values():
            _write_line(client, {"problem": problem, "late": late})
    if problem:
        raise (TimeoutError if late else ValueError)(problem)


def _report(place: Place, seconds: float) -> None:
    """Any other process: says its number to process 0 and waits for its answer."""
    deadline, why = time.monotonic() + seconds, "no attempt"
    hello = {"program": PROGRAM, "process": place.process, "processes": place.processes}
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((place.host, place.port), timeout=left) as server:
                _write_line(server, hello)
                answer = _read_line(server, left + ANSWER_SECONDS)
        except OSError as error:
            answer, why = None, error.strerror or str(error)
        else:
            why = "process 0 was reached but gave no answer"
        if answer is not None:
            _heed(answer)
            return
        time.sleep(min(RETRY_SECONDS, max(0, deadline - time.monotonic())))
    raise TimeoutError(
        f"coordinator {place.coordinator}: process {place.process} waited {seconds:g} s for "
        f"process 0 there ({why}); --wait_seconds S waits longer"
    )


def _heed(answer: dict[str, Any]) -> None:
    if problem := answer.get("problem"):
        raise (TimeoutError if answer.get("late") else ValueError)(problem)


def _misfit(hello: dict[str, Any], place: Place, arrived: dict[int, socket.socket]) -> str:
    """Why a process cannot be one of this run; empty where it can."""
    process, processes = hello["process"], hello["processes"]
    if processes != place.processes:
        return (
            f"--processes differ: {place.processes} in process 0, {processes} in process {process}"
        )
    if process in arrived and _is_open(arrived[process]):
        return f"two processes were started as --process {process}: expected each number once"
    return ""


def _listen(place: Place) -> socket.socket:
    """All addresses of this host, as JAX listens on all of them."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", place.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        return socket.create_server(("", place.port), backlog=1024)
    except OSError as error:
        raise ValueError(
            f"coordinator {place.coordinator}: process 0 cannot listen on port {place.port} "
            f"({error.strerror}); expected a free port in --coordinator HOST:PORT"
        ) from error


def _clients(listening: socket.socket, deadline: float) -> Iterator[socket.socket]:
    while (left := deadline - time.monotonic()) > 0:
        listening.settimeout(left)
        try:
            yield listening.accept()[0]
        except TimeoutError:
            return


def _is_open(client: socket.socket) -> bool:
    """Whether the other side still waits."""
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        client.setblocking(True)


def _read_line(peer: socket.socket, seconds: float) -> dict[str, Any] | None:
    """A JSON object; None where the other side says nothing in time, or nothing of ours."""
    peer.settimeout(max(seconds, 0.1))
    try:
        with peer.makefile("rb") as lines:
            found = json.loads(lines.readline(LONGEST_LINE))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_line(peer: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is gone: its own wait ends by itself
        peer.settimeout(HELLO_SECONDS)
        peer.sendall(json.dumps(message).encode() + b"\n")


def _numbered(processes: list[int]) -> str:
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(map(str, processes))}"
