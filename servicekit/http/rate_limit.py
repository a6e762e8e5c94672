"""Token buckets: how often somebody may do something."""

import time
from collections import OrderedDict
from collections.abc import Callable

from servicekit.config.schema import RateLimit, RateLimits
from servicekit.errors import limit_exceeded

MAX_KEYS = 100_000


class RateLimiter:
    """The buckets of one class of action, one a key (a user, an address, a server).

    A bucket holds `burst` tokens and gets `per_second` of them; an action takes one. At most `MAX_KEYS`
    buckets are held; the longest untouched goes first, so that a flood of keys costs bounded memory.

    Args:
        limit: of the configuration.
        enabled: False lets everything through.
        clock: seconds, never going back.
    """

    def __init__(
        self, limit: RateLimit, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = limit.per_second
        self._burst = float(limit.burst)
        self._enabled = enabled
        self._clock = clock
        # key -> (tokens, when they were counted)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @classmethod
    def of(cls, limits: RateLimits, name: str) -> "RateLimiter":
        """Return the limiter of a class of the section `rate_limits`, such as `message`."""
        limit = getattr(limits, name)
        assert isinstance(limit, RateLimit)
        return cls(limit, enabled=limits.enabled)

    def wait_ms(self, key: str, *, cost: float = 1.0, take: bool = True) -> int:
        """Take `cost` tokens and return 0, or take none and return the milliseconds after which there are
        enough.

        With `take=False` it only looks.
        """
        if not self._enabled:
            return 0
        now = self._clock()
        tokens, since = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        if tokens < cost:
            return int((cost - tokens) / self._per_second * 1000) + 1
        if take:
            self._buckets[key] = (tokens - cost, now)
            self._buckets.move_to_end(key)
            if len(self._buckets) > MAX_KEYS:
                self._buckets.popitem(last=False)
        return 0

    def check_many(self, key: str, count: int) -> None:
        """Do as `check` for several actions at once; never more than a full bucket is asked for. Raises as it."""
        if count > 0:
            self.check(key, cost=min(float(count), self._burst))

    def check(self, key: str, *, cost: float = 1.0, take: bool = True) -> None:
        """Do as `wait_ms` does.

        Raises:
            MatrixError: there are not enough tokens (429 M_LIMIT_EXCEEDED with `retry_after_ms`).
        """
        wait = self.wait_ms(key, cost=cost, take=take)
        if wait:
            raise limit_exceeded(wait)
