"""Sync tokens and topological tokens.

`a1_<epoch>.<OUTPUT sequence>_<epoch>.<LIVE sequence>`: what happened up to there is known to the client. A third
part, `_d<position>`, says that of its to-device messages it has only those up to a position: there were more than one
answer holds.
`t1_<depth>_<position>`: a place between two events in the order of `/messages`, which is (depth, position):
the events smaller than the pair lie before it.
"""

import re
from typing import NamedTuple

from servicekit.errors import MatrixError, invalid_param
from servicekit.log.subjects import POSITION_FACTOR

_SYNC_TOKEN = re.compile(
    r"a1_([A-Za-z0-9-]{1,40})\.([0-9]{1,15})_([A-Za-z0-9-]{1,40})\.([0-9]{1,15})(?:_d([0-9]{1,19}))?",
    re.ASCII,
)
_TOPOLOGICAL_TOKEN = re.compile(r"t1_([0-9]{1,19})_(-?[0-9]{1,19})", re.ASCII)
_MAX_INT = 2**63 - 1


class SyncToken(NamedTuple):
    """A place in both streams; `output_sequence` and what is before it is known to the client."""

    output_epoch: str
    output_sequence: int
    live_epoch: str
    live_sequence: int
    inbox: int = 0
    """The last to-device message that the client has; 0: all that the token covers."""

    def __str__(self) -> str:
        inbox = f"_d{self.inbox}" if self.inbox else ""
        return f"a1_{self.output_epoch}.{self.output_sequence}_{self.live_epoch}.{self.live_sequence}{inbox}"

    @property
    def position(self) -> int:
        """The greatest event position that the token covers."""
        return self.output_sequence * POSITION_FACTOR + POSITION_FACTOR - 1


class TopologicalToken(NamedTuple):
    """A place between events: those with a smaller (depth, position) lie before it."""

    depth: int
    position: int

    def __str__(self) -> str:
        return f"t1_{self.depth}_{self.position}"


def _invalid(name: str) -> MatrixError:
    return invalid_param(f"{name} is not a token of this server")


def parse_sync_token(text: str, name: str = "since") -> SyncToken:
    """Return the token.

    Raises:
        MatrixError: M_INVALID_PARAM, it is not of this form.
    """
    match = _SYNC_TOKEN.fullmatch(text)
    if match is None:
        raise _invalid(name)
    inbox = int(match[5] or 0)
    if inbox > _MAX_INT:
        raise _invalid(name)
    return SyncToken(match[1], int(match[2]), match[3], int(match[4]), inbox)


def parse_token(text: str, name: str = "from") -> SyncToken | TopologicalToken:
    """Return a token of either form.

    Raises:
        MatrixError: M_INVALID_PARAM, it is of neither form.
    """
    match = _TOPOLOGICAL_TOKEN.fullmatch(text)
    if match is None:
        return parse_sync_token(text, name)
    depth, position = int(match[1]), int(match[2])
    if depth > _MAX_INT or abs(position) > _MAX_INT:
        raise _invalid(name)
    return TopologicalToken(depth, position)
