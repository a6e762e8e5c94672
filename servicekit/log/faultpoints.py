"""Places where a chaos test may kill the process.

`ARBOR_FAULT=relay.after_publish` kills this process (SIGKILL, nothing runs after it) when it reaches that
point, `ARBOR_FAULT=relay.after_publish:3` at the third time. With `ARBOR_FAULT_ONCE=FILE` only one process
does, once: the one that makes FILE. Without `ARBOR_FAULT` a fault point is an empty function.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path


def make_fault_point(fault: str | None, once_path: str | None = None) -> Callable[[str], None]:
    """Return the `fault_point` function for the given settings."""
    if not fault:
        return lambda name: None
    wanted, _, count = fault.partition(":")
    left = int(count or 1)

    def fault_point(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left != 0:
            return
        if once_path is not None:
            try:
                Path(once_path).touch(exist_ok=False)
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)

    return fault_point


fault_point = make_fault_point(os.environ.get("ARBOR_FAULT"), os.environ.get("ARBOR_FAULT_ONCE"))
