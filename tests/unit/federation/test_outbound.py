"""Discovery, the deny list and backoff: decisions about reaching other servers, without a network."""

from collections.abc import Sequence

import pytest

from federation.outbound.backoff import FRESH, MAX_DELAY_MS, Backoff
from federation.outbound.client import path_of
from federation.outbound.deny import DenyList
from federation.outbound.discovery import Discovery, Target, WellKnown
from federation.outbound.errors import BackingOff, BadAnswer, RemoteRefused, client_error
from federation.outbound.transport import cache_time_s
from matrixlib.server_discovery import SrvRecord


class Answers:
    """Given answers, and how often each was asked for."""

    def __init__(self) -> None:
        self.delegations: dict[str, WellKnown] = {}
        self.records: dict[str, Sequence[SrvRecord]] = {}
        self.asked: list[str] = []
        self.now = 0.0

    async def well_known(self, hostname: str) -> WellKnown:
        self.asked.append(hostname)
        return self.delegations.get(hostname, WellKnown({}, None))

    async def srv(self, name: str) -> Sequence[SrvRecord]:
        self.asked.append(name)
        return self.records.get(name, ())

    def discovery(self) -> Discovery:
        return Discovery(self, lambda: self.now)


async def test_the_order_of_discovery() -> None:
    answers = Answers()
    discovery = answers.discovery()
    assert await discovery.resolve("1.2.3.4") == [Target("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")]
    assert await discovery.resolve("[::1]:99") == [Target("::1", 99, "::1", "[::1]:99")]
    assert await discovery.resolve("a.example:99") == [Target("a.example", 99, "a.example", "a.example:99")]
    assert answers.asked == []
    assert await discovery.resolve("a.example") == [Target("a.example", 8448, "a.example", "a.example")]
    assert answers.asked == ["a.example", "_matrix-fed._tcp.a.example", "_matrix._tcp.a.example"]
    assert await discovery.resolve("not a name") == []


async def test_a_delegated_name_is_looked_up_and_its_certificate_demanded() -> None:
    answers = Answers()
    answers.delegations["a.example"] = WellKnown({"m.server": "b.example"}, None)
    answers.records["_matrix-fed._tcp.b.example"] = [
        SrvRecord(20, 0, 1, "late.example."),
        SrvRecord(10, 0, 2, "early.example."),
    ]
    assert await answers.discovery().resolve("a.example") == [
        Target("early.example", 2, "b.example", "b.example"),
        Target("late.example", 1, "b.example", "b.example"),
    ]


async def test_answers_are_kept_as_long_as_they_say_and_errors_ever_longer() -> None:
    answers = Answers()
    discovery = answers.discovery()
    answers.delegations["a.example"] = WellKnown({"m.server": "b.example:1"}, 10_000.0)
    for now, asked in ((0, 1), (9_999, 1), (10_001, 2)):
        answers.now = now
        await discovery.resolve("a.example")
        assert answers.asked.count("a.example") == asked
    # However long it says: at most 48 hours; however short: at least five minutes.
    answers.delegations["a.example"] = WellKnown({"m.server": "b.example:1"}, 1e9)
    for now, asked in ((20_002, 3), (20_002 + 48 * 3600 + 1, 4)):
        answers.now = now
        await discovery.resolve("a.example")
        assert answers.asked.count("a.example") == asked
    for now, asked in ((0, 1), (299, 1), (301, 2), (800, 2), (902, 3)):
        answers.now = 1e6 + now
        await discovery.resolve("error.example")
        assert answers.asked.count("error.example") == asked, now


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "172.20.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "no address",
    ],
)
def test_private_addresses_are_denied_in_every_form(address: str) -> None:
    assert DenyList(["default"]).denies(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are_not(address: str) -> None:
    assert not DenyList(["default"]).denies(address)


def test_the_list_is_what_the_configuration_says() -> None:
    assert not DenyList([]).denies("127.0.0.1")
    assert DenyList(["1.0.0.0/8"]).denies("1.1.1.1")
    assert not DenyList(["1.0.0.0/8"]).denies("127.0.0.1")
    assert DenyList(["default", "1.0.0.0/8"]).denies("127.0.0.1")


def test_backoff_doubles_up_to_hours() -> None:
    state = FRESH
    assert state.is_due(0)
    delays = []
    for _ in range(16):
        state = state.failed(1000, 0.5)
        delays.append(state.next_try_ms - 1000)
        assert not state.is_due(1000)
    assert delays[:4] == [5000, 10_000, 20_000, 40_000]
    assert delays[-1] == MAX_DELAY_MS
    assert FRESH.failed(0, 0.0).next_try_ms < FRESH.failed(0, 0.99).next_try_ms
    assert FRESH.failed(0, 0.5, at_least_ms=60_000) == Backoff(1, 60_000)


def test_ids_are_escaped_into_paths() -> None:
    assert (
        path_of("/x/{}/{}", "!a/b:c", "@ü:d", ver=["1", "2"]) == "/x/%21a%2Fb%3Ac/%40%C3%BC%3Ad?ver=1&ver=2"
    )


def test_errors_for_clients() -> None:
    assert client_error(RemoteRefused("a", 401, "M_UNKNOWN_TOKEN", "x")).http_status == 502
    assert client_error(RemoteRefused("a", 500, "M_FORBIDDEN", "x")).http_status == 403
    assert client_error(RemoteRefused("a", 404, "", "x")).errcode == "M_NOT_FOUND"
    assert client_error(BadAnswer("a", "x")).http_status == 502
    assert client_error(BackingOff("a", 5)).http_status == 502


def test_cache_headers() -> None:
    assert cache_time_s({"cache-control": "public, max-age=60"}, 0) == 60
    assert cache_time_s({"cache-control": "no-store, max-age=60"}, 0) == 0
    assert cache_time_s({"expires": "Thu, 01 Jan 1970 00:01:00 GMT"}, 0) == 60
    assert cache_time_s({"expires": "rubbish"}, 0) == 0
    assert cache_time_s({}, 0) is None
