"""What Orbax writes to the log and to stderr beside the exceptions that it raises.

It logs about 60 lines a save. Where one of many writes fails, as on a full disk, its event loop
ends while the others are still under way, and each of those then complains by itself.
"""

from __future__ import annotations

import logging as std_logging
import sys
import warnings
from collections.abc import Callable

from absl import logging

# Those that were there before ours, the last one in use.
_hooks: list[Callable[[sys.UnraisableHookArgs], object]] = []


def quiet_orbax() -> None:
    """Leave out all but its warnings, from now on in this process; exceptions are not touched."""
    logging.get_absl_logger().addFilter(_no_chatter)
    std_logging.getLogger("asyncio").addFilter(_no_second_errors)
    if sys.unraisablehook is not _no_late_callbacks:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _no_late_callbacks
    warnings.filterwarnings(
        "ignore", message="coroutine 'async_serialize.* was never awaited", category=RuntimeWarning
    )


def _no_chatter(record: std_logging.LogRecord) -> bool:
    """Its warnings, and the records of others; what it logs as an error it raises as well."""
    return record.levelno == std_logging.WARNING or "orbax" not in record.pathname


def _no_second_errors(record: std_logging.LogRecord) -> bool:
    """Not what asyncio says of the writes that were not waited for."""
    if "never retrieved" not in record.msg:
        return True
    text = record.getMessage()
    if record.exc_info:
        text += std_logging.Formatter().formatException(record.exc_info)
    return "orbax" not in text


def _no_late_callbacks(found: sys.UnraisableHookArgs) -> None:
    """Not the callbacks of such writes into the event loop that has ended."""
    if str(found.exc_value) != "Event loop is closed":
        _hooks[-1](found)
