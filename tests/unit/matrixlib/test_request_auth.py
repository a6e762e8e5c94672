"""X-Matrix: writing, reading, checking."""

from typing import Any

import pytest

from matrixlib.canonical_json import encode_canonical
from matrixlib.request_auth import (
    RequestAuthError,
    XMatrix,
    authorization_header,
    authorization_header_of_bytes,
    destination_matches,
    format_header,
    parse_authorization_header,
    verify_request,
)
from matrixlib.signing import generate_signing_key
from tests.support.rooms import key_of

KEY = key_of("a.example")
REQUEST: dict[str, Any] = {"method": "PUT", "uri": "/_matrix/x?a=%20b", "content": {"é": [1]}}


def header() -> str:
    """A request's header."""
    return authorization_header(KEY, origin="a.example", destination="b.example", **REQUEST)


def test_round_trip() -> None:
    text = header()
    assert text.startswith('X-Matrix origin="a.example",destination="b.example",key="ed25519:test",sig="')
    parsed = parse_authorization_header(text)
    verify_request(parsed, KEY.verify_key, destination="b.example", **REQUEST)
    assert destination_matches(parsed, frozenset({"b.example"}))
    assert not destination_matches(parsed, frozenset({"c.example"}))


@pytest.mark.parametrize(
    "text",
    [
        "X-Matrix origin=a.example,destination=b.example:80,key=ed25519:test,sig=abc+/",
        'x-matrix   ORIGIN="a.example" ,\tKey="ed25519:test",\tdestination="b.example:80" , SIG="abc+/"',
        'X-Matrix sig="abc+/",key="ed25519:te\\st",origin="a.\\example",destination="b.example:80",x=",=\\""',
        'X-Matrix origin="a.example",destination="b.example:80",key="ed25519:test",sig="abc+/",',
    ],
)
def test_forms_that_are_accepted(text: str) -> None:
    assert parse_authorization_header(text) == XMatrix("a.example", "b.example:80", "ed25519:test", "abc+/")  # type: ignore[arg-type]


def test_a_missing_destination_is_accepted() -> None:
    parsed = parse_authorization_header('X-Matrix origin="a.example",key="ed25519:test",sig="x"')
    assert parsed.destination is None
    assert destination_matches(parsed, frozenset({"b.example"}))
    assert format_header(parsed) == 'X-Matrix origin="a.example",key="ed25519:test",sig="x"'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bearer x",
        "X-Matrix",
        "X-Matrix ",
        "X-Matrix origin",
        "X-Matrix origin=a.example",
        "X-Matrix ====",
        'X-Matrix origin="a b",key="ed25519:1",sig="x"',
        'X-Matrix origin="a",key="rsa:1",sig="x"',
        'X-Matrix origin="a",key="ed25519:1"',
        'X-Matrix origin="a",origin="b",key="ed25519:1",sig="x"',
        'X-Matrix origin="a,key="ed25519:1",sig="x"',
        'X-Matrix origin="a";key="ed25519:1"',
        "X-Matrix " + "a=b," * 5000,
        'X-Matrix origin="' + "\\" * 3000,
    ],
)
def test_forms_that_are_refused(text: str) -> None:
    with pytest.raises(RequestAuthError):
        parse_authorization_header(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"uri": "/_matrix/x"},
        {"content": {}},
        {"content": None},
        {"destination": "c.example"},
    ],
    ids=str,
)
def test_any_change_breaks_the_signature(changes: dict[str, object]) -> None:
    arguments = {**REQUEST, "destination": "b.example", **changes}
    with pytest.raises(RequestAuthError):
        verify_request(parse_authorization_header(header()), KEY.verify_key, **arguments)


def test_another_key_is_refused() -> None:
    for key in (generate_signing_key("test"), generate_signing_key("other")):
        with pytest.raises(RequestAuthError):
            verify_request(
                parse_authorization_header(header()), key.verify_key, destination="b.example", **REQUEST
            )


def test_quotes_and_backslashes_survive() -> None:
    value = XMatrix("a.example", "b.example", 'ed25519:a"\\b', "x")  # type: ignore[arg-type]
    assert parse_authorization_header(format_header(value)) == value


@pytest.mark.parametrize("content", [None, {}, {"pdus": [{"body": "ü\u2028"}], "edus": []}])
def test_a_body_that_is_canonical_already_is_signed_alike(content: dict[str, object] | None) -> None:
    key = key_of("a.example")
    about = {"method": "PUT", "uri": "/x?y=1", "origin": "a.example", "destination": "b.example"}
    expected = authorization_header(key, **about, content=content)
    body = None if content is None else encode_canonical(content)
    assert authorization_header_of_bytes(key, **about, content_json=body) == expected
