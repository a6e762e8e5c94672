"""How a destination's failures delay the next try. Pure: the clock and the jitter are arguments.

    failure 1    2    3    4  ...   8  ...  13
    delay   5 s  10   20   40       10 min  6 h (the longest)

A success, or a request of that server to us, forgets the failures.
"""

from dataclasses import dataclass

FIRST_DELAY_MS = 5_000
MAX_DELAY_MS = 6 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Backoff:
    """`failures` in a row, and when (milliseconds since 1970) the next try is due; 0: at once."""

    failures: int = 0
    next_try_ms: int = 0

    def is_due(self, now_ms: int) -> bool:
        """Whether the destination may be asked."""
        return now_ms >= self.next_try_ms

    def failed(self, now_ms: int, jitter: float, at_least_ms: int = 0) -> "Backoff":
        """The state after one more failure.

        `jitter` in [0, 1) spreads the tries of many destinations over a fifth of the delay; `at_least_ms` is
        what the destination itself asked for.
        """
        delay = min(FIRST_DELAY_MS * 2 ** min(self.failures, 30), MAX_DELAY_MS)
        delay = max(int(delay * (0.9 + 0.2 * jitter)), min(at_least_ms, MAX_DELAY_MS))
        return Backoff(self.failures + 1, now_ms + delay)


FRESH = Backoff()
