"""What a server costs, measured over all of its processes: CPU time, memory, disk.

CPU time comes from the kernel's accounts and includes children that have ended and were waited for, so that a
restarted process is not forgotten.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def process_tree(root_pid: int) -> Iterator[psutil.Process]:
    """The process and all its living descendants."""
    try:
        root = psutil.Process(root_pid)
        members = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    yield from members


def cpu_seconds(root_pid: int) -> float:
    """User and system time of the process, its descendants, and the dead ones they waited for, in seconds."""
    total = 0.0
    for process in process_tree(root_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(root_pid: int) -> int:
    """Memory of the tree, pages that several processes share counted once (proportional set size)."""
    total = 0
    for process in process_tree(root_pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total


def rss_bytes(root_pid: int) -> int:
    """Resident memory of the tree as `top` shows it: shared pages count once for each process."""
    total = 0
    for process in process_tree(root_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def disk_bytes(folder: Path) -> int:
    """Blocks allocated on disk to all files under `folder`, in bytes (sparse files count what they use)."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
