"""Identifier grammars, historical ones included."""

import pytest

from matrixlib.identifiers import (
    IdentifierError,
    is_compliant_user_id,
    is_hash_room_id,
    is_namespaced_identifier,
    is_valid_new_user_localpart,
    is_valid_server_name,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    server_name_of,
    split_host_port,
)


@pytest.mark.parametrize(
    "name",
    [
        "matrix.org",
        "matrix.org:8888",
        "1.2.3.4",
        "1.2.3.4:1234",
        "[1234:5678::abcd]",
        "[::1]:5678",
        "localhost",
        "UPPER.example",
        "a-b.c",
        "1.2.3",
        "example.org:0",
    ],
)
def test_server_names(name: str) -> None:
    assert is_valid_server_name(name)
    assert parse_server_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":80",
        "a b",
        "a_b",
        "a/b",
        "a:123456",
        "a:",
        "a:x",
        "[::1",
        "[zz::]",
        "[1:2]",
        "1.2.3.256",
        "é.example",
        "a" * 256,
        "a\n",
        "[::1]x",
        "a@b",
        "a:80:80",
        "\ud800",
    ],
)
def test_what_is_no_server_name(name: str) -> None:
    assert not is_valid_server_name(name)
    with pytest.raises(IdentifierError):
        parse_server_name(name)


@pytest.mark.parametrize(
    "user", ["@a:b", "@:b", "@UPPER:b", "@with space:b.example:80", "@é\n:b", "@" + "x" * 250 + ":b.c"]
)
def test_user_ids_as_received(user: str) -> None:
    assert parse_user_id(user) == user


@pytest.mark.parametrize(
    "user",
    [
        "",
        "@",
        "a:b",
        "@a",
        "@a:",
        "@a:b/c",
        "@a\0:b",
        "@" + "x" * 254 + ":b",
        "@" + "é" * 130 + ":b",
        "@\ud800:b",
        "!a:b",
        None,
        5,
        ["@a:b"],
    ],
)
def test_what_is_no_user_id(user: object) -> None:
    with pytest.raises(IdentifierError):
        parse_user_id(user)


def test_room_and_event_ids_with_and_without_domain() -> None:
    hashed = "A" * 43
    assert parse_room_id("!x:b") == "!x:b"
    assert parse_room_id("!" + hashed) == "!" + hashed
    assert parse_event_id("$x:b") == "$x:b"
    assert parse_event_id("$" + hashed) == "$" + hashed
    assert is_hash_room_id("!" + hashed)
    assert not is_hash_room_id("!x:b")
    wrong: list[object] = ["", "!", "x", "!x:", "$a:b c", "#a:b", None, {}]
    for value in wrong:
        with pytest.raises(IdentifierError):
            parse_room_id(value)
    for value in ("", "$", "!x:b", None, *wrong[:2]):
        with pytest.raises(IdentifierError):
            parse_event_id(value)
    assert parse_room_alias("#a b:c") == "#a b:c"
    for value in ["#a", "#a\0:b", "@a:b", *wrong]:
        if value == "#a:b":
            continue
        with pytest.raises(IdentifierError):
            parse_room_alias(value)


def test_parts() -> None:
    assert server_name_of("@a:[::1]:80") == "[::1]:80"
    assert server_name_of("!hash") == ""
    assert split_host_port("[::1]:80") == ("[::1]", 80)
    assert split_host_port("[::1]") == ("[::1]", None)
    assert split_host_port("a:1") == ("a", 1)
    assert split_host_port("a") == ("a", None)


def test_what_we_mint() -> None:
    assert is_valid_new_user_localpart("a-z.0_9=/+")
    for localpart in ("", "A", "é", "a:b", "a\n"):
        assert not is_valid_new_user_localpart(localpart)
    assert is_compliant_user_id("@UPPER!:b")
    assert not is_compliant_user_id("@:b")
    assert not is_compliant_user_id("@a b:b")
    assert is_namespaced_identifier("m.login.password")
    assert not is_namespaced_identifier("M.x")
