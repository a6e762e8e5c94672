"""Globs and server ACLs."""

from typing import Any

import pytest

from matrixlib.globs import compile_glob, compile_literal
from matrixlib.server_acl import ServerAcl, server_allowed
from tests.support.rooms import ALICE, Room


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("lunc?*", "Lunch plans", True),
        ("lunc?*", "LUNCH", True),
        ("lunc?*", " lunch", False),
        ("lunc?*", "lunc", False),
        ("*", "", True),
        ("?", "", False),
        ("", "", True),
        ("", "x", False),
        ("a*b", "ab", True),
        ("a*b", "aXXb", True),
        ("a*b", "abX", False),
        ("*a*", "bab", True),
        ("a**b", "ab", True),
        ("*.evil.com", "evil.com", False),
        ("*.evil.com", "a.b.evil.com", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[a]", "a", False),
        ("a.c", "abc", False),
        ("ab*ba", "aba", False),
        ("*aab", "aaab", True),
        ("a*a*a", "aa", False),
        ("É*", "éa", True),
        ("?*?", "a", False),
        ("?*?", "ab", True),
        ("a\n*", "a\nb", True),
    ],
)
def test_whole_matches(pattern: str, text: str, expected: bool) -> None:
    assert compile_glob(pattern).matches(text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("ex*ple", "An example event.", True),
        ("ex*ple", "exple", True),
        ("ex*ple", "An exciting triple-whammy", True),
        ("cake", "Cakes are nice", False),
        ("cake", "a cake, please", True),
        ("cake", "cakecake cake", True),
        ("cake", "pancake_cake", False),
        ("cake", "a CAKE", True),
        ("#tag", "a#tag", True),
        ("tag", "#tag!", True),
        ("c?ke", "a coke", True),
        ("c?ke", "acoke", False),
        ("*ke", "cokex ake", True),
        ("foo", "fooé", True),
        ("", "x", True),
        ("*", "", True),
        ("?", "", False),
        ("a?", "a", False),
        ("a*", "ba a", True),
    ],
)
def test_word_matches(pattern: str, text: str, expected: bool) -> None:
    assert compile_glob(pattern).matches_words(text) is expected


def test_a_literal_has_no_wildcards() -> None:
    assert compile_literal("a*").matches_words("hi A* there")
    assert not compile_literal("a*").matches_words("hi abc there")


def allowed(content: dict[str, Any], name: str) -> bool:
    """Whether an ACL of this content allows a server."""
    return ServerAcl(content).allows(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good.example", True),
        ("evil.com", False),
        ("EVIL.com", False),
        ("evil.com:8448", False),
        ("evil.com.", False),
        ("a.evil.com", False),
        ("A.Evil.Com:1", False),
        ("notevil.com", True),
        ("1.2.3.4", False),
        ("1.2.3.4:80", False),
        ("[::1]", False),
        ("[::1]:80", False),
        ("1.2.3", True),
        ("not a name", False),
        ("", False),
        ("x" * 300, False),
    ],
)
def test_acl(name: str, expected: bool) -> None:
    content = {"allow": ["*"], "deny": ["evil.com", "*.EVIL.com"], "allow_ip_literals": False}
    assert allowed(content, name) is expected


def test_acl_defaults() -> None:
    assert server_allowed(None, "any.example")
    event = Room("10").send(ALICE, "m.room.server_acl", {}, state_key="")
    assert not server_allowed(event, "any.example")
    assert allowed({"allow": ["*"]}, "1.2.3.4")
    assert allowed({"allow": ["*"], "allow_ip_literals": "no"}, "1.2.3.4")
    assert allowed({"allow": ["a.*", 5, None]}, "A.example:80")
    for malformed in (None, 5, "*", {"a": 1}, [["*"]], [None]):
        assert not allowed({"allow": malformed}, "a.example")
        assert allowed({"allow": ["*"], "deny": malformed}, "a.example")
