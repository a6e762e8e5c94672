"""Token buckets, with a clock of the test's own."""

import pytest

from servicekit.config.schema import RateLimit, RateLimits
from servicekit.errors import MatrixError
from servicekit.http import RateLimiter, rate_limit


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    limiter = RateLimiter(RateLimit(per_second=2, burst=3), clock=clock)
    assert [limiter.wait_ms("a") for _ in range(3)] == [0, 0, 0]
    wait = limiter.wait_ms("a")
    assert 500 <= wait <= 501
    assert limiter.wait_ms("b") == 0, "another key has a bucket of its own"
    clock.now += wait / 1000
    assert limiter.wait_ms("a") == 0, "after the time it named, it lets through"
    clock.now += 1000
    assert [limiter.wait_ms("a") > 0 for _ in range(4)] == [False, False, False, True], (
        "never more than the burst"
    )


def test_being_refused_costs_nothing_and_looking_neither() -> None:
    clock = Clock()
    limiter = RateLimiter(RateLimit(per_second=1, burst=1), clock=clock)
    limiter.check("a", take=False)
    limiter.check("a")
    for _ in range(10):
        assert limiter.wait_ms("a") > 0
    clock.now += 1.0
    limiter.check("a")


def test_the_error_says_when_to_come_again() -> None:
    limiter = RateLimiter(RateLimit(per_second=0.5, burst=1), clock=Clock())
    limiter.check("a")
    with pytest.raises(MatrixError) as caught:
        limiter.check("a")
    assert (caught.value.errcode, caught.value.http_status) == ("M_LIMIT_EXCEEDED", 429)
    assert caught.value.body()["retry_after_ms"] == 2001


def test_a_flood_of_keys_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_KEYS", 3)
    limiter = RateLimiter(RateLimit(per_second=0.001, burst=1), clock=Clock())
    for key in "abcd":
        limiter.check(key)
    assert len(limiter._buckets) == 3
    assert limiter.wait_ms("d") > 0
    assert limiter.wait_ms("a") == 0, "the longest untouched was forgotten"


def test_turned_off_it_lets_everything_through() -> None:
    limiter = RateLimiter.of(RateLimits(enabled=False), "login")
    assert all(limiter.wait_ms("a") == 0 for _ in range(1000))


def test_several_at_once_ask_for_no_more_than_a_whole_bucket() -> None:
    clock = Clock()
    limiter = RateLimiter(RateLimit(per_second=1, burst=5), clock=clock)
    limiter.check_many("a", 0)
    limiter.check_many("a", 100)
    with pytest.raises(MatrixError) as caught:
        limiter.check_many("a", 3)
    assert caught.value.retry_after_ms == 3001
    clock.now += 3.001
    limiter.check_many("a", 3)
