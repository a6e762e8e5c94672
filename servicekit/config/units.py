"""Sizes and durations as people write them."""

import re

_SIZE_FACTORS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_DURATION_FACTORS = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
    "y": 365 * 86400.0,
}
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")

SIZE_FORM = "a number of bytes, or one with a unit such as 512KiB, 100MB or 10GiB"
DURATION_FORM = "a number of seconds, or one with a unit: 500ms, 30s, 15m, 24h, 7d, 2w or 1y"


def parse_size(text: str) -> int | None:
    """Return the bytes that `10GiB`, `1.5 MB` or `4096` stand for, or None for another text."""
    match = _NUMBER_AND_UNIT.match(text.strip())
    factor = _SIZE_FACTORS.get(match[2].lower()) if match else None
    return None if match is None or factor is None else round(float(match[1]) * factor)


def parse_duration(text: str) -> float | None:
    """Return the seconds that `24h`, `500ms` or `90` stand for, or None for another text."""
    match = _NUMBER_AND_UNIT.match(text.strip())
    factor = _DURATION_FACTORS.get(match[2].lower()) if match else None
    return None if match is None or factor is None else float(match[1]) * factor


def format_size(size_bytes: int) -> str:
    """Return the shortest exact form of a size: 10737418240 is `10GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _SIZE_FACTORS[unit.lower()]
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """Return the shortest exact form of a duration: 86400.0 is `1d`."""
    for unit in ("w", "d", "h", "m", "s"):
        factor = _DURATION_FACTORS[unit]
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"
