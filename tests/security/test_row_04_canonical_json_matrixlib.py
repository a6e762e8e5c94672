"""Row 4: numbers outside canonical JSON, huge depth, lone surrogates: dropped alone, what goes out still
serialises.
"""

import time
from typing import Any

import pytest

from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.client_event import client_event_json
from matrixlib.events import EventFormatError, parse_event
from matrixlib.room_versions import ROOM_VERSIONS
from tests.support.rooms import ALICE, Room

STRICT = [name for name, version in ROOM_VERSIONS.items() if version.strict_canonical_json]


def text_with(depth: bytes = b"5", content: bytes = b"{}", version: str = "10") -> bytes:
    """The JSON of an event with a depth and content as given."""
    event = Room(version).send(ALICE, "m.room.message", {})
    text = event.pdu_json.replace(b'"depth":%d' % event.depth, b'"depth":' + depth)
    return text.replace(b'"content":{}', b'"content":' + content)


@pytest.mark.parametrize("version", STRICT)
@pytest.mark.parametrize(
    "depth",
    [
        b"9007199254740992",
        b"-9007199254740992",
        b"9223372036854775808",
        b"1.0",
        b"1e3",
        b"-1",
        b'"5"',
        b"null",
        b"NaN",
        b"-Infinity",
        b"true",
        b"[]",
        b"1" * 400,
    ],
)
def test_bad_depth(version: str, depth: bytes) -> None:
    with pytest.raises(EventFormatError):
        parse_event(text_with(depth, version=version), ROOM_VERSIONS[version])


@pytest.mark.parametrize("version", ROOM_VERSIONS)
@pytest.mark.parametrize(
    "content",
    [
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"[" * 10000 + b"]" * 10000,
        b'{"a":' * 10000 + b"1" + b"}" * 10000,
        b'{"a":\xff}',
    ],
    ids=range(7),
)
def test_bad_content(version: str, content: bytes) -> None:
    start = time.process_time()
    with pytest.raises(EventFormatError):
        parse_event(text_with(content=content, version=version), ROOM_VERSIONS[version])
    assert time.process_time() - start < 1


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_minus_zero_and_duplicate_keys_do_not_survive_parsing(version: str) -> None:
    text = text_with(content=b'{"a":1,"a":-0}', version=version)
    event = parse_event(text, ROOM_VERSIONS[version])
    assert event.content == {"a": 0}
    assert parse_event(event.pdu_json, ROOM_VERSIONS[version]).event_id == event.event_id


def test_what_old_rooms_allow_still_goes_out() -> None:
    # Versions 1 to 5 accept these numbers: every later encoder must, too.
    content = b'{"big":%d,"float":1.5,"exponent":1e300}' % 2**100
    for version in sorted(set(ROOM_VERSIONS) - set(STRICT)):
        event = parse_event(text_with(content=content, version=version), ROOM_VERSIONS[version])
        transaction = {"pdus": [event.pdu, event.pdu]}
        assert parse_json(encode_canonical(transaction)) == transaction
        assert b"1267650600228229401496703205376" in client_event_json(event)


def test_one_bad_event_is_dropped_alone() -> None:
    room = Room("10")
    good = [room.send(ALICE, "m.room.message", {"body": str(number)}).pdu_json for number in range(49)]
    batch = [*good[:20], text_with(b"9007199254740992"), *good[20:]]
    parsed: list[Any] = []
    for text in batch:
        try:
            parsed.append(parse_event(text, room.version).pdu)
        except EventFormatError:
            continue
    assert len(parsed) == 49
    assert len(parse_json(encode_canonical({"pdus": parsed}))["pdus"]) == 49


def test_nothing_else_is_ever_raised_for_depth() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (240, 260, 1_000, 5_000, 100_000):
            try:
                encode_canonical(parse_json(opening * depth + b"1" + closing * depth))
            except CanonicalJsonError:
                assert depth > 250
