"""The directory of public rooms."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clientapi.rooms.queries import state_of
from clientapi.rooms.send import RoomSender
from clientapi.storage import directory
from matrixlib.events import Event, StateKey
from matrixlib.globs import compile_glob
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import forbidden, invalid_param

CACHE_S: Final = 5.0
MAX_LIMIT: Final = 500

_KEYS: Final[dict[str, StateKey]] = {
    "create": ("m.room.create", ""),
    "name": ("m.room.name", ""),
    "topic": ("m.room.topic", ""),
    "avatar": ("m.room.avatar", ""),
    "alias": ("m.room.canonical_alias", ""),
    "join_rules": ("m.room.join_rules", ""),
    "history": ("m.room.history_visibility", ""),
    "guests": ("m.room.guest_access", ""),
}


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the directory."""

    chunk: list[dict[str, Any]]
    total: int
    next_batch: str | None
    prev_batch: str | None


class PublicRooms:
    """Lists public rooms, the largest first. The list is made anew every few seconds at most."""

    def __init__(self, config: Config, db: Database, sender: RoomSender) -> None:
        self._config = config
        self._db = db
        self._sender = sender
        self._entries: list[dict[str, Any]] = []
        self._made_s = float("-inf")
        self._lock = asyncio.Lock()

    def forget(self) -> None:
        """Make the list anew at the next question."""
        self._made_s = float("-inf")

    def check_may_list(self, user_id: str, room_id: str, aliases: Sequence[str]) -> None:
        """Check the operator's rules on publication. Raises MatrixError M_FORBIDDEN."""
        for rule in self._config.room_directory.publication_rules:
            if (
                compile_glob(rule.user_id).matches(user_id)
                and compile_glob(rule.room_id).matches(room_id)
                and (rule.alias == "*" or any(compile_glob(rule.alias).matches(alias) for alias in aliases))
            ):
                if rule.action == "allow":
                    return
                break
        raise forbidden("This room may not be listed here")

    async def page(
        self,
        limit: int | None,
        since: str | None,
        search: str | None,
        room_types: Sequence[str | None] | None,
    ) -> Page:
        """Return a page.

        Args:
            limit: at most so many rooms; None: as many as fit a page.
            since: a token of an earlier page.
            search: a part of name, topic or alias, in any case.
            room_types: only rooms of these types; None among them stands for rooms without one.

        Raises:
            MatrixError: M_INVALID_PARAM for a token that is none of ours.
        """
        entries = await self._load()
        if search:
            entries = [entry for entry in entries if _matches(entry, search.casefold())]
        if room_types is not None:
            entries = [entry for entry in entries if entry.get("room_type") in room_types]
        start = _parse_token(since)
        size = MAX_LIMIT if limit is None or limit <= 0 else min(limit, MAX_LIMIT)
        end = start + size
        return Page(
            entries[start:end],
            len(entries),
            f"p{end}" if end < len(entries) else None,
            f"p{max(start - size, 0)}" if start > 0 else None,
        )

    async def _load(self) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._made_s > CACHE_S:
                self._entries = await self._make()
                self._made_s = loop.time()
        return self._entries

    async def _make(self) -> list[dict[str, Any]]:
        room_ids = await self._db.read(directory.load_published)
        entries = [
            _entry(room.room_id, state_of(room), room.counts.joined)
            for room in await self._sender.queries.rooms(room_ids, keys=_KEYS.values())
            if room.counts.joined and not room.quarantined
        ]
        entries.sort(key=lambda entry: (-entry["num_joined_members"], entry["room_id"]))
        return entries


def _entry(room_id: str, state: Mapping[StateKey, Event], joined: int) -> dict[str, Any]:
    def text(what: str, key: str) -> str | None:
        event = state.get(_KEYS[what])
        value = event.content.get(key) if event is not None else None
        return value if isinstance(value, str) and value else None

    entry: dict[str, Any] = {
        "room_id": room_id,
        "num_joined_members": joined,
        "world_readable": text("history", "history_visibility") == "world_readable",
        "guest_can_join": text("guests", "guest_access") == "can_join",
        "join_rule": text("join_rules", "join_rule") or "invite",
    }
    for name, what, key in (
        ("name", "name", "name"),
        ("topic", "topic", "topic"),
        ("avatar_url", "avatar", "url"),
        ("canonical_alias", "alias", "alias"),
        ("room_type", "create", "type"),
    ):
        value = text(what, key)
        if value is not None:
            entry[name] = value
    return entry


def _matches(entry: Mapping[str, Any], search: str) -> bool:
    return any(search in entry.get(name, "").casefold() for name in ("name", "topic", "canonical_alias"))


def _parse_token(since: str | None) -> int:
    if since is None:
        return 0
    if since[:1] != "p" or not since[1:].isdigit() or len(since) > 10:
        raise invalid_param("since is not a token of this list")
    return int(since[1:])
