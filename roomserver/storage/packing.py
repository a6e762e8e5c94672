"""Lists of numbers as blobs: one byte that says how wide they are, then little-endian integers.

Fixed width, since a whole state is decoded at once and `struct` does that in C.
"""

from collections.abc import Iterable, Sequence
from struct import pack, unpack

_NARROW = 1 << 32


def pack_ids(ids: Sequence[int]) -> bytes:
    """Return the blob of a list of numbers."""
    if not ids:
        return b""
    if max(ids) < _NARROW:
        return pack(f"<B{len(ids)}I", 4, *ids)
    return pack(f"<B{len(ids)}Q", 8, *ids)


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """Return the numbers of a blob."""
    if not blob:
        return ()
    width = blob[0]
    count = (len(blob) - 1) // width
    return unpack(f"<{count}{'I' if width == 4 else 'Q'}", blob[1:])


def pack_pairs(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Return the blob of pairs."""
    return pack_ids([number for pair in pairs for number in pair])


def unpack_pairs(blob: bytes) -> dict[int, int]:
    """Return the pairs of a blob as a dict."""
    numbers = unpack_ids(blob)
    return dict(zip(numbers[::2], numbers[1::2], strict=True))
