"""JSON as Matrix hashes and signs it (spec v1.19, appendices, "Canonical JSON").

Order of use: ``parse_json`` for bytes from outside, ``check_strict`` where the room version (6 and later) or
the endpoint demands the strict form, ``encode_canonical`` for whatever is hashed, signed, measured or stored.

Two forms exist. *Strict* allows integers of 53 bits and no floats. *Lax* (room versions 1 to 5) allows every
JSON number; its bytes equal those of the reference package ``canonicaljson``, because hashes depend on them.

``orjson`` does the work where its bytes are the same; it differs for floats (`1e16` against `1e+16`),
non-finite floats (`null`) and integers beyond 64 bits, which take the slower way.

Errors: everything raises ``CanonicalJsonError``, a ``ValueError``, and nothing else.
"""

import json
from typing import Any, Final, NoReturn

import orjson

MAX_SAFE_INTEGER: Final = 2**53 - 1
MIN_SAFE_INTEGER: Final = -(2**53) + 1
MAX_DEPTH: Final = 250
"""Deepest nesting of arrays and objects accepted. NOTSPEC: the spec has no limit; peers stop between this and
1,000, and what we accept must be encodable by every later step."""

_SORTED: Final = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_STRICT: Final = _SORTED | orjson.OPT_STRICT_INTEGER

# Integers beyond 64 bits, which orjson reads as floats, show as a run of digits. A table and a search for a
# fixed
# string take a tenth of the time of a regular expression.
_DIGITS_TO_ZERO: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_LONG_DIGITS: Final = b"0" * 18

_reference_encoder: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, check_circular=False
)


class CanonicalJsonError(ValueError):
    """The bytes are not JSON that we accept, or the value has no canonical form."""


def encode_canonical(value: Any, *, integral_floats: bool = False) -> bytes:
    """Encode a JSON value canonically: sorted keys, no white space, UTF-8.

    Integers of any size and finite floats are accepted (lax form). With ``integral_floats`` a float that is a
    whole number below 2^53 is written as that integer, as the spec's last example does.

    Raises ``CanonicalJsonError`` for NaN, infinities, lone surrogates, keys that are not strings, foreign
    types and too deep nesting.
    """
    try:
        encoded = orjson.dumps(value, option=_SORTED)
    except (TypeError, ValueError, RecursionError):
        return _encode_slowly(value, integral_floats)
    if _holds_float(value):
        return _encode_slowly(value, integral_floats)
    return encoded


def encode_strict(value: Any) -> bytes:
    """Encode a value that must be strict: ``check_strict`` and ``encode_canonical`` in one pass.

    Raises ``CanonicalJsonError``.
    """
    try:
        encoded = orjson.dumps(value, option=_STRICT)
    except (TypeError, ValueError, RecursionError) as error:
        raise CanonicalJsonError(f"not canonical JSON: {error}") from None
    if _holds_float(value):
        raise CanonicalJsonError("not canonical JSON: a float")
    return encoded


def encode_checked(value: Any) -> bytes:
    """Encode a part of a value that ``encode_strict`` has taken already: no second check. Raises
    ``CanonicalJsonError``.
    """
    try:
        return orjson.dumps(value, option=_SORTED)
    except (TypeError, ValueError, RecursionError) as error:
        raise CanonicalJsonError(f"not canonical JSON: {error}") from None


def check_strict(value: Any) -> None:
    """Check that a value is canonical JSON in the strict sense. Raises ``CanonicalJsonError``."""
    encode_strict(value)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON text from outside: UTF-8 only, no NaN, at most ``MAX_DEPTH`` deep, integers kept exact.

    Of duplicate keys the last wins, as in every peer we know: all that follows works on the parsed value.

    Raises ``CanonicalJsonError``.
    """
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError as error:
            raise CanonicalJsonError(f"not JSON: {error}") from None
    try:
        if _LONG_DIGITS in data.translate(_DIGITS_TO_ZERO):
            # orjson turns integers beyond 64 bits into floats.
            value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
            _refuse_lone_surrogates(value)
        else:
            value = orjson.loads(data)
    except CanonicalJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise CanonicalJsonError(f"not JSON: {error}") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    """Raise ``CanonicalJsonError`` if a string in the value has a lone surrogate (``json`` lets them
    pass).
    """
    try:
        _reference_encoder.encode(value).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CanonicalJsonError(f"not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise CanonicalJsonError(f"not JSON: {name}")


def _encode_slowly(value: Any, integral_floats: bool) -> bytes:
    _check_keys_and_types(value)
    if integral_floats:
        value = _with_integral_floats(value)
    try:
        return _reference_encoder.encode(value).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise CanonicalJsonError(f"has no canonical form: {error}") from None


def _check_keys_and_types(value: Any) -> None:
    # The reference encoder would turn the keys 1, True and None into strings.
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise CanonicalJsonError("has no canonical form: a key is not a string")
            children: Any = item.values()
        elif isinstance(item, list | tuple):
            children = item
        elif item is None or isinstance(item, str | int | float):
            continue
        else:
            raise CanonicalJsonError(f"has no canonical form: {type(item).__name__}")
        if depth >= MAX_DEPTH:
            raise CanonicalJsonError("nested too deeply")
        stack.extend((child, depth + 1) for child in children)


def _with_integral_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_integral_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_integral_floats(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_SAFE_INTEGER:
        return int(value)
    return value


def _holds_float(value: Any) -> bool:
    # On the path of every event: exact types first, no call per leaf.
    if not isinstance(value, dict | list | tuple):
        return isinstance(value, float)
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        for child in item.values() if isinstance(item, dict) else item:
            kind = type(child)
            if kind is str or kind is int:
                continue
            if kind is dict or kind is list or kind is tuple:
                if child:
                    stack.append(child)
            elif isinstance(child, float):
                return True
    return False


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise CanonicalJsonError("nested too deeply")
