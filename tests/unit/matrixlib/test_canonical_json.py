"""Canonical JSON against the spec's vectors and the reference package."""

import json
import math
from pathlib import Path

import canonicaljson
import pytest

from matrixlib.canonical_json import (
    MAX_DEPTH,
    MAX_SAFE_INTEGER,
    CanonicalJsonError,
    check_strict,
    encode_canonical,
    encode_strict,
    parse_json,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "canonical_json.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_spec_examples(vector: dict[str, str]) -> None:
    value = parse_json(vector["input_text"])
    assert encode_canonical(value, integral_floats=True) == vector["canonical_text"].encode()


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1, "a": [1, 2, {"d": None, "c": True}]},
        {"\U0001f600": 1, "\uffff": 2, "z": 3, "é": 4},
        {"text": 'quote " back \\ slash / del \x7f ctl \x01\n\t\x1f \u2028'},
        {"float": 1e16, "small": 1e-7, "negative": -0.0, "half": 0.5},
        {"big": 2**70, "negative": -(2**70), "edge": 2**53},
        [],
        {},
        "",
        0,
        None,
        True,
        [[[]]],
    ],
)
def test_equals_the_reference_package(value: object) -> None:
    assert encode_canonical(value) == canonicaljson.encode_canonical_json(value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        {"a": [math.nan]},
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        {None: 1},
        {True: 1},
        b"bytes",
        object(),
        {"a": {1, 2}},
    ],
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(CanonicalJsonError):
        encode_canonical(value)


@pytest.mark.parametrize("value", [MAX_SAFE_INTEGER, -MAX_SAFE_INTEGER, 0, "x", None, [True], {"a": []}])
def test_strict_accepts(value: object) -> None:
    check_strict(value)
    assert encode_strict(value) == encode_canonical(value)


@pytest.mark.parametrize(
    "value",
    [2**53, -(2**53), 2**64, 1.0, 0.5, math.nan, {"a": [1.5]}, [[2**53]], {"null": None, "x": math.nan}],
)
def test_strict_refuses(value: object) -> None:
    with pytest.raises(CanonicalJsonError):
        check_strict(value)
    with pytest.raises(CanonicalJsonError):
        encode_strict(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b'{"a":1,}',
        b"\xff",
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b"01",
        b"'a'",
        b"[1] x",
        b'["12345678901234567890\\ud800", 123456789012345678901]',
        b"[NaN, 123456789012345678901]",
        b"1" * 5000,
    ],
)
def test_parse_refuses(text: bytes) -> None:
    with pytest.raises(CanonicalJsonError):
        parse_json(text)


def test_parse_keeps_big_integers_exact() -> None:
    assert parse_json(b"[18446744073709551616, -9223372036854775809, 1e2]") == [2**64, -(2**63) - 1, 100.0]
    assert parse_json('"1234567890123456789012345"') == "1234567890123456789012345"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded(opening: str, closing: str) -> None:
    for depth in (MAX_DEPTH + 2, 1000, 10_000, 100_000):
        with pytest.raises(CanonicalJsonError):
            parse_json(opening * depth + "1" + closing * depth)
    deep = parse_json(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH)
    assert encode_canonical(deep) == encode_strict(deep)


def test_a_value_nested_too_deeply_is_refused_by_the_encoder() -> None:
    value: object = 1.5
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CanonicalJsonError):
        encode_canonical(value)
    with pytest.raises(CanonicalJsonError):
        encode_strict(value)


def test_of_duplicate_keys_the_last_wins() -> None:
    assert parse_json(b'{"a":1,"a":2}') == {"a": 2}
