"""Published keys: reading, writing, validity."""

from typing import Any

import pytest

from matrixlib.room_versions import V4, V5
from matrixlib.server_keys import (
    MAX_VALIDITY_MS,
    PublishedKey,
    ServerKeysError,
    is_valid_for_event,
    is_valid_for_request,
    parse_server_keys,
    server_keys_response,
)
from matrixlib.signing import generate_signing_key, sign_json
from tests.support.rooms import key_of

KEY = key_of("a.example")
OLD = generate_signing_key("old")


def response(**changes: Any) -> dict[str, Any]:
    """A signed response, changed before it was signed."""
    value = server_keys_response("a.example", KEY, valid_until_ms=1000, old_keys={OLD.verify_key: 500})
    return sign_json({**value, "signatures": {}, **changes}, "a.example", KEY)


def test_round_trip() -> None:
    keys = parse_server_keys(response(), "a.example")
    assert keys.keys["ed25519:test"] == PublishedKey(KEY.verify_key, 1000, is_old=False)
    assert keys.keys["ed25519:old"] == PublishedKey(OLD.verify_key, 500, is_old=True)
    assert keys.valid_until_ms == 1000


def test_malformed_single_keys_are_left_out() -> None:
    good = response()["verify_keys"]
    bad = {"ed25519:x": {"key": "short"}, "ed25519:y": 5, "rsa:z": {"key": "AAAA"}, "ed25519:w": {}}
    assert set(parse_server_keys(response(verify_keys={**good, **bad}), "a.example").keys) == {
        "ed25519:test",
        "ed25519:old",
    }
    assert set(parse_server_keys(response(old_verify_keys=[1]), "a.example").keys) == {"ed25519:test"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        response(server_name="b.example"),
        response(valid_until_ts="x"),
        response(verify_keys={}),
        response(verify_keys=5),
        {**response(), "extra": 1},
        {**response(), "signatures": {}},
        {**response(), "signatures": {"a.example": {"ed25519:test": 5}}},
    ],
    ids=range(10),
)
def test_refused(value: Any) -> None:
    with pytest.raises(ServerKeysError):
        parse_server_keys(value, "a.example")


def test_validity() -> None:
    week = MAX_VALIDITY_MS
    key = PublishedKey(KEY.verify_key, 10 * week, is_old=False)
    assert is_valid_for_request(key, now_ms=week, fetched_ms=0)
    assert not is_valid_for_request(key, now_ms=week + 1, fetched_ms=0)
    assert is_valid_for_event(key, V5, origin_server_ts=week, fetched_ms=0)
    assert not is_valid_for_event(key, V5, origin_server_ts=week + 1, fetched_ms=0)
    assert is_valid_for_event(key, V4, origin_server_ts=100 * week, fetched_ms=0)
    old = PublishedKey(KEY.verify_key, 50, is_old=True)
    assert not is_valid_for_request(old, now_ms=10, fetched_ms=0)
    assert is_valid_for_event(old, V5, origin_server_ts=50, fetched_ms=0)
    assert not is_valid_for_event(old, V5, origin_server_ts=51, fetched_ms=0)
