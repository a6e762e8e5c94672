"""Rooms of spaces that other servers tell us of: asked for, kept for a minute, checked before anybody sees them.

What another server says of a room counts only where this server does not know the room itself.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matrixlib.identifiers import is_valid_server_name
from syncapi.remote import RemoteHistory

KEPT_S: Final = 60.0
MAX_KEPT: Final = 2000
MAX_CHILDREN: Final = 200
MAX_VIA: Final = 5
OPEN_RULES: Final = ("public", "knock", "knock_restricted")
_FIELDS: Final = (
    "room_id",
    "num_joined_members",
    "room_version",
    "world_readable",
    "guest_can_join",
    "name",
    "topic",
    "avatar_url",
    "canonical_alias",
    "room_type",
    "join_rule",
    "encryption",
    "allowed_room_ids",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A room to ask others about: through whom."""

    room_id: str
    via: tuple[str, ...]


class RemoteSpaces:
    """See the module."""

    def __init__(self, remote: RemoteHistory, now_s: Callable[[], float]) -> None:
        self._remote = remote
        self._now_s = now_s
        # room -> (when, its summary with children or None); of a child only told of, what its parent's server says
        self._kept: OrderedDict[str, tuple[float, dict[str, Any] | None]] = OrderedDict()

    def told(self) -> Mapping[str, dict[str, Any] | None]:
        """Return what is known of rooms: a summary with `children_state`; None: nobody could say anything."""
        oldest = self._now_s() - KEPT_S
        return {room_id: summary for room_id, (at_s, summary) in self._kept.items() if at_s >= oldest}

    async def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Ask about rooms, all at the same time."""
        async with asyncio.TaskGroup() as group:
            for room in wanted:
                group.create_task(self._fetch(room))

    async def _fetch(self, room: Wanted) -> None:
        answer = await self._remote.hierarchy(room.room_id, room.via)
        if answer is None:
            self._keep(room.room_id, None)
            return
        self._keep(room.room_id, _summary(answer["room"], answer["room"].get("children_state")))
        for child in answer["children"]:
            # A space's own children are asked for when they are wanted.
            if child.get("room_type") != "m.space" and child["room_id"] not in self.told():
                self._keep(child["room_id"], _summary(child, ()))

    def _keep(self, room_id: str, summary: dict[str, Any] | None) -> None:
        self._kept[room_id] = (self._now_s(), summary)
        self._kept.move_to_end(room_id)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _summary(room: Mapping[str, Any], children: Any) -> dict[str, Any]:
    summary = {key: room[key] for key in _FIELDS if key in room}
    allowed = summary.pop("allowed_room_ids", None)
    if isinstance(allowed, list):
        summary["allowed_room_ids"] = [room_id for room_id in allowed if isinstance(room_id, str)]
    summary["children_state"] = [
        {key: child[key] for key in ("type", "state_key", "content", "sender", "origin_server_ts")}
        for child in (children if isinstance(children, list) else ())[:MAX_CHILDREN]
        if _is_child(child)
    ]
    return summary


def _is_child(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("type") == "m.space.child"
        and isinstance(value.get("state_key"), str)
        and isinstance(value.get("sender"), str)
        and type(value.get("origin_server_ts")) is int
        and isinstance(value.get("content"), dict)
        and bool(via_of(value["content"]))
    )


def only_suggested(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with none but suggested children."""
    children = [child for child in summary["children_state"] if child["content"].get("suggested") is True]
    return {**summary, "children_state": children}


def via_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the servers that a child event names."""
    via = content.get("via")
    names = via if isinstance(via, list) else []
    return tuple(name for name in names if isinstance(name, str) and is_valid_server_name(name))[:MAX_VIA]
