"""Server discovery: which questions are asked, and where each answer leads."""

from typing import Any

import pytest

from matrixlib.server_discovery import (
    Answers,
    AskSrv,
    AskWellKnown,
    Destination,
    ServerDiscoveryError,
    SrvRecord,
    Target,
    next_question,
    parse_well_known,
    well_known_cache_s,
)

SRV = [
    SrvRecord(20, 0, 1, "second.example."),
    SrvRecord(10, 5, 2, "light.example"),
    SrvRecord(10, 9, 3, "heavy.example"),
]


def discover(
    name: str, well_known: dict[str, Any], srv: dict[str, list[SrvRecord]]
) -> tuple[Destination, list[str]]:
    """The destination, and the questions on the way."""
    answers = Answers()
    asked: list[str] = []
    while True:
        match next_question(name, answers):
            case Destination() as destination:
                return destination, asked
            case AskWellKnown(host):
                asked.append(host)
                answers.well_known = well_known
            case AskSrv(question):
                asked.append(question)
                answers.srv[question] = srv.get(question, [])


@pytest.mark.parametrize(
    ("name", "well_known", "srv", "step", "target", "host", "certificate", "questions"),
    [
        ("1.2.3.4", {}, {}, "1", Target("1.2.3.4", 8448), "1.2.3.4", "1.2.3.4", 0),
        ("[::1]:80", {}, {}, "1", Target("::1", 80), "[::1]:80", "::1", 0),
        ("a.example:80", {}, {}, "2", Target("a.example", 80), "a.example:80", "a.example", 0),
        ("a.example", {"m.server": "[::1]"}, {}, "3.1", Target("::1", 8448), "[::1]", "::1", 1),
        (
            "a.example",
            {"m.server": "b.example:1"},
            {},
            "3.2",
            Target("b.example", 1),
            "b.example:1",
            "b.example",
            1,
        ),
        (
            "a.example",
            {"m.server": "b.example"},
            {"_matrix-fed._tcp.b.example": SRV},
            "3.3",
            Target("heavy.example", 3),
            "b.example",
            "b.example",
            2,
        ),
        (
            "a.example",
            {"m.server": "b.example"},
            {"_matrix._tcp.b.example": SRV},
            "3.4",
            Target("heavy.example", 3),
            "b.example",
            "b.example",
            3,
        ),
        (
            "a.example",
            {"m.server": "b.example"},
            {},
            "3.5",
            Target("b.example", 8448),
            "b.example",
            "b.example",
            3,
        ),
        (
            "a.example",
            {},
            {"_matrix-fed._tcp.a.example": SRV},
            "4",
            Target("heavy.example", 3),
            "a.example",
            "a.example",
            2,
        ),
        (
            "a.example",
            {},
            {"_matrix._tcp.a.example": SRV},
            "5",
            Target("heavy.example", 3),
            "a.example",
            "a.example",
            3,
        ),
        ("a.example", {}, {}, "6", Target("a.example", 8448), "a.example", "a.example", 3),
    ],
)
def test_steps(
    name: str,
    well_known: dict[str, Any],
    srv: dict[str, list[SrvRecord]],
    step: str,
    target: Target,
    host: str,
    certificate: str,
    questions: int,
) -> None:
    destination, asked = discover(name, well_known, srv)
    assert destination.step == step
    assert destination.targets[0] == target
    assert (destination.host_header, destination.certificate_name) == (host, certificate)
    assert len(asked) == questions


def test_srv_targets_in_order() -> None:
    destination, _ = discover("a.example", {}, {"_matrix-fed._tcp.a.example": SRV})
    assert [target.port for target in destination.targets] == [3, 2, 1]
    assert destination.targets[2].host == "second.example"
    nothing = {"_matrix-fed._tcp.a.example": [SrvRecord(0, 0, 0, ".")]}
    assert discover("a.example", {}, nothing)[0].step == "6"


@pytest.mark.parametrize("name", ["", "a b", "http://a", "a/b", "[::1", "a:b"])
def test_what_is_no_server_name(name: str) -> None:
    with pytest.raises(ServerDiscoveryError):
        next_question(name, Answers())


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"m.server": "b.example:80"}', {"m.server": "b.example:80"}),
        (404, b'{"m.server": "b.example"}', {}),
        (200, b"<html>", {}),
        (200, b"[]", {}),
        (200, b"{}", {}),
        (200, b'{"m.server": 5}', {}),
        (200, b'{"m.server": "http://b"}', {}),
        (200, b'{"m.server": ""}', {}),
        (200, b"[" * 40_000, {}),
        (200, b'{"m.server": "b.example", "x": "' + b"x" * 60_000 + b'"}', {}),
    ],
    ids=range(10),
)
def test_well_known_answers(status: int, body: bytes, expected: dict[str, Any]) -> None:
    assert parse_well_known(status, body) == expected


def test_how_long_to_keep_them() -> None:
    good = {"m.server": "b.example"}
    assert well_known_cache_s(good, None) == 24 * 3600
    assert well_known_cache_s(good, 10**9) == 48 * 3600
    assert well_known_cache_s(good, 60) == 60
    assert well_known_cache_s(good, -5) == 0
    assert well_known_cache_s({}, 10**9) == 3600
