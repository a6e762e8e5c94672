"""The wall clock, in the unit of the protocol. Passed as an argument, so that tests own the time."""

import time
from collections.abc import Callable

NowMs = Callable[[], int]
"""Gives milliseconds since 1970."""


def now_ms() -> int:
    """Return the time now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
