"""JSON from strangers.

Strict where the specification leaves no choice: UTF-8, no NaN or Infinity, no lone surrogates. Of a key that
stands twice the last value counts (what most parsers do; events are encoded anew from the parsed form, so
that no two readers can differ). Nesting is bounded, since encoders and our own recursion are.
"""

from typing import Any

import orjson

from servicekit.errors import MatrixError, bad_json

MAX_DEPTH = 100


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        MatrixError: it is no JSON (400 M_NOT_JSON), or no object or nested too deeply (400 M_BAD_JSON).
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise MatrixError("M_NOT_JSON", 400, "The body is not valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise bad_json("The body is not a JSON object")
    # As many brackets as levels at least: the count alone clears nearly every body.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise bad_json(f"The body is nested more than {MAX_DEPTH} levels deep")
