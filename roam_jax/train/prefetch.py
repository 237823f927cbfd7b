"""Batches on the devices before the step asks for them.

A thread draws the next batch and puts it on the devices while the current step runs. Every batch
travels with the position of the data after it, so that a checkpoint remembers what was trained on,
not what was read ahead.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from roam_jax.contracts import Batch

# Batches that wait on the devices; more would only take their memory.
DEPTH = 2


class DevicePrefetch:
    """An iterator of batches on the devices; `next` ends with StopIteration where the data ends.

    Args:
        batches: iterator of host batches with `get_state()`.
        put: a host batch to the devices.
        depth: batches that are held ready.
    """

    def __init__(
        self,
        batches: Any,
        put: Callable[[Batch], Mapping[str, jax.Array]],
        *,
        depth: int = DEPTH,
    ):
        self._batches, self._put = batches, put
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stop = threading.Event()
        self._state = batches.get_state()
        self._waited = 0.0
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> DevicePrefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> DevicePrefetch:
        return self

    def __next__(self) -> Mapping[str, jax.Array]:
        began = time.perf_counter()
        batch, state, error = self._ready.get()
        self._waited += time.perf_counter() - began
        if error is not None:
            self._ready.put((None, None, error))  # whoever asks again is told again
            raise error
        self._state = state
        self._slots.release()
        return batch

    def get_state(self) -> Any:
        """Position of the data after the last batch that was handed out."""
        return self._state

    def seconds_waited(self) -> float:
        """Time that `next` has waited since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Ends the thread; what it read ahead is dropped."""
        self._stop.set()
        self._slots.release()  # it may wait for one
        self._thread.join()
        # On a CPU these batches are the memory that worker processes wrote.
        self._ready = queue.SimpleQueue()

    def _fill(self) -> None:
        try:
            while self._slots.acquire() and not self._stop.is_set():
                batch = self._put(next(self._batches))
                self._ready.put((batch, self._batches.get_state(), None))
        except BaseException as error:  # whatever it is, the training thread raises it
            self._ready.put((None, None, error))
