"""One child process: how it is started, and when again."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from servicekit.logging import get_logger

log = get_logger("supervisor")

_PR_SET_PDEATHSIG = 1
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0
# A child that lived so long died of something else than its start.
STABLE_S = 3.0

_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A child process that is started again when it dies.

    Args:
        name: in logs and pids.json.
        argv: the command.
        environment: its environment.
        descriptors: open descriptors that it gets.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[int] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._environment = dict(environment)
        self._descriptors = tuple(descriptors)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._delay_s = FIRST_DELAY_S
        self.restart_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None: it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it."""
        self.restart_at = None
        self._started_at = self._clock()
        self._process = subprocess.Popen(
            self._argv,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            pass_fds=self._descriptors,
            # Ctrl-C in a terminal goes to the supervisor alone, which drains in the right order.
            process_group=0,
            preexec_fn=_before_exec,  # noqa: PLW1509 - the supervisor has one thread
        )

    def poll(self) -> int | None:
        """Return the exit status if it has died since the last look, and plan its next start; else None."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._process = None
        now = self._clock()
        if now - self._started_at > STABLE_S:
            self._delay_s = FIRST_DELAY_S
        self.restart_at = now + self._delay_s
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)


def _before_exec() -> None:
    # The child dies with its parent, however that dies, and does not inherit the blocked signals.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
