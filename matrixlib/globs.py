"""Glob-style matching in linear time (spec v1.19, appendices, "Glob-style matching").

`*` matches zero or more characters, `?` exactly one. Hostile patterns such as `*a*a*a*b` cost no more than
harmless ones: a pattern with wildcards runs as a bit-parallel automaton, one step per character of the text,
never back.
"""

import re
from functools import lru_cache
from typing import Final

_WILDCARD: Final = re.compile(r"[*?]")
_WORD: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class Glob:
    """A compiled pattern, matched case-insensitively."""

    __slots__ = ("_end", "_literal", "_loops", "_masks", "_other", "_parts")

    def __init__(self, pattern: str, *, literal: bool = False) -> None:
        """``literal``: wildcards stand for themselves."""
        pattern = pattern.lower()
        self._literal: str | None = pattern if literal or _WILDCARD.search(pattern) is None else None
        self._parts: list[str] | None = pattern.split("*") if "?" not in pattern else None
        # State i: the first i characters of the pattern, stars left out, are matched. `_masks[c]`: the states
        # that c
        # leads on from; `_other`: those that every character leads on from; `_loops`: those with a star
        # before them.
        self._masks: dict[str, int] = {}
        self._other = 0
        self._loops = 0
        position = 0
        for char in pattern:
            if char == "*":
                self._loops |= 1 << position
                continue
            if char == "?":
                self._other |= 1 << position
            else:
                self._masks[char] = self._masks.get(char, 0) | 1 << position
            position += 1
        for char, mask in self._masks.items():
            self._masks[char] = mask | self._other
        self._end = 1 << position

    def matches(self, text: str) -> bool:
        """Whether the pattern matches the whole text."""
        text = text.lower()
        if self._literal is not None:
            return text == self._literal
        if self._parts is not None:
            return _match_parts(self._parts, text)
        states = 1
        masks, other, loops = self._masks, self._other, self._loops
        for char in text:
            states = ((states & masks.get(char, other)) << 1) | (states & loops)
            if not states:
                return False
        return bool(states & self._end)

    def matches_words(self, text: str) -> bool:
        """Whether the pattern matches a part of the text that starts and ends at a word boundary.

        "A word boundary is defined as the start or end of the value, or any character not in the sets
        `[A-Z]`, `[a-z]`, `[0-9]` or `_`" (client-server API, "Push Rules").
        """
        text = text.lower()
        if self._literal is not None:
            return _find_words(self._literal, text)
        states = 0
        masks, other, loops, end = self._masks, self._other, self._loops, self._end
        before_is_word = False
        for char in text:
            is_word = char in _WORD
            if not (before_is_word and is_word):
                states |= 1
                if states & end:
                    return True
            states = ((states & masks.get(char, other)) << 1) | (states & loops)
            before_is_word = is_word
        return bool((states | 1) & end)


@lru_cache(maxsize=4096)
def compile_glob(pattern: str) -> Glob:
    """A compiled pattern, cached."""
    return Glob(pattern)


@lru_cache(maxsize=4096)
def compile_literal(text: str) -> Glob:
    """A pattern that is a plain text, cached."""
    return Glob(text, literal=True)


def _match_parts(parts: list[str], text: str) -> bool:
    # Literals between stars: the first must begin the text, the last end it, the others follow in order.
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, limit = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, position, limit)
        if found < 0:
            return False
        position = found + len(part)
    return position <= limit


def _find_words(literal: str, text: str) -> bool:
    if not literal:
        return True
    position = text.find(literal)
    while position >= 0:
        if _is_boundary(text, position) and _is_boundary(text, position + len(literal)):
            return True
        position = text.find(literal, position + 1)
    return False


def _is_boundary(text: str, position: int) -> bool:
    if position == 0 or position == len(text):
        return True
    return not (text[position - 1] in _WORD and text[position] in _WORD)
