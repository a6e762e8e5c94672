"""Filters (client-server API, "Filtering"), checked and compiled once.

`parse_filter` takes a whole filter as `/sync` has it, `parse_room_event_filter` the one of `/messages` and
`/context`. What they return is immutable and may be shared between requests.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from servicekit.errors import MatrixError, bad_json
from syncapi.rendering import CONTENT_HAS_URL

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
MAX_MESSAGES_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class EventFilter:
    """One event filter; every part that is None (or empty) excludes nothing."""

    limit: int | None = None
    types: re.Pattern[str] | None = None
    not_types: re.Pattern[str] | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()
    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False
    # Only events that others by these relate to. None: no such filter.
    related_by_senders: frozenset[str] | None = None
    related_by_rel_types: frozenset[str] | None = None

    def passes_room(self, room_id: str) -> bool:
        """Whether anything of the room can pass."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def passes(self, type_: str, sender: str, flags: int = 0) -> bool:
        """Whether an event with these properties passes (its room not looked at)."""
        if self.types is not None and self.types.fullmatch(type_) is None:
            return False
        if self.not_types is not None and self.not_types.fullmatch(type_) is not None:
            return False
        if sender in self.not_senders or (self.senders is not None and sender not in self.senders):
            return False
        return self.contains_url is None or self.contains_url == bool(flags & CONTENT_HAS_URL)

    @property
    def by_relations(self) -> bool:
        """Whether it takes what relates to an event to say whether the event passes (`storage.relations`)."""
        return self.related_by_senders is not None or self.related_by_rel_types is not None

    @property
    def passes_all(self) -> bool:
        """Whether every event of every room passes: then nothing need be looked at."""
        return (
            self.types is None
            and self.not_types is None
            and self.senders is None
            and not self.not_senders
            and self.contains_url is None
            and self.rooms is None
            and not self.not_rooms
        )

    def capped_limit(self, default: int = DEFAULT_LIMIT, maximum: int = MAX_LIMIT) -> int:
        """Return how many events to give at most."""
        return default if self.limit is None else min(self.limit, maximum)


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter. `key` tells equal filters from different ones."""

    key: bytes
    fields: tuple[tuple[str, ...], ...] | None
    federation_format: bool
    presence: EventFilter
    account_data: EventFilter
    rooms: frozenset[str] | None
    not_rooms: frozenset[str]
    include_leave: bool
    ephemeral: EventFilter
    state: EventFilter
    timeline: EventFilter
    room_account_data: EventFilter

    def passes_room(self, room_id: str) -> bool:
        """Whether the room may be in the answer."""
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    @property
    def lazy_load_members(self) -> bool:
        """Whether only the membership events are wanted that the timeline needs."""
        return self.state.lazy_load_members

    @property
    def remembers_members(self) -> bool:
        """Whether membership events that the client has are not to be sent again for lazy loading."""
        return self.state.lazy_load_members and not self.state.include_redundant_members


def _strings(value: dict[str, Any], key: str) -> list[str] | None:
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise bad_json(f"filter: {key} must be a list of strings")
    return found


def _ids(value: dict[str, Any], key: str, sigil: str) -> list[str] | None:
    found = _strings(value, key)
    if found is not None and not all(item.startswith(sigil) for item in found):
        raise bad_json(f"filter: {key} must be a list of ids, which begin with {sigil}")
    return found


def _flag(value: dict[str, Any], key: str) -> bool | None:
    found = value.get(key)
    if found is not None and not isinstance(found, bool):
        raise bad_json(f"filter: {key} must be true or false")
    return found


def _patterns(patterns: Iterable[str] | None) -> re.Pattern[str] | None:
    if patterns is None:
        return None
    # Each run of stars becomes one lazy wildcard; a pattern is linear in the text between its literals.
    alternatives = ("[\\s\\S]*?".join(map(re.escape, re.split(r"\*+", pattern))) for pattern in patterns)
    return re.compile("|".join(f"(?:{alternative})" for alternative in alternatives) or r"(?!)")


MAX_PATTERN_STARS = 8


def _checked_types(value: dict[str, Any], key: str) -> list[str] | None:
    types = _strings(value, key)
    if types is not None and any(len(re.findall(r"\*+", item)) > MAX_PATTERN_STARS for item in types):
        raise bad_json(f"filter: a pattern in {key} has too many wildcards")
    return types


def _set(values: list[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _event_filter(value: Any, name: str) -> EventFilter:
    if value is None:
        return EventFilter()
    if not isinstance(value, dict):
        raise bad_json(f"filter: {name} must be an object")
    limit = value.get("limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise bad_json("filter: limit must be a number that is not negative")
    not_types = _checked_types(value, "not_types")
    return EventFilter(
        limit=limit,
        types=_patterns(_checked_types(value, "types")),
        not_types=_patterns(not_types) if not_types else None,
        senders=_set(_ids(value, "senders", "@")),
        not_senders=frozenset(_ids(value, "not_senders", "@") or ()),
        rooms=_set(_ids(value, "rooms", "!")),
        not_rooms=frozenset(_ids(value, "not_rooms", "!") or ()),
        contains_url=_flag(value, "contains_url"),
        lazy_load_members=bool(_flag(value, "lazy_load_members")),
        include_redundant_members=bool(_flag(value, "include_redundant_members")),
        unread_thread_notifications=bool(_flag(value, "unread_thread_notifications")),
        related_by_senders=_set(_ids(value, "related_by_senders", "@")),
        related_by_rel_types=_set(_strings(value, "related_by_rel_types")),
    )


def parse_filter(value: Any) -> Filter:
    """Compile a filter from its JSON value.

    Raises:
        MatrixError: M_BAD_JSON, it is no filter.
    """
    if not isinstance(value, dict):
        raise bad_json("a filter must be an object")
    fields = _strings(value, "event_fields")
    room = {} if value.get("room") is None else value["room"]
    if not isinstance(room, dict):
        raise bad_json("filter: room must be an object")
    format_ = value.get("event_format", "client")
    if format_ not in ("client", "federation"):
        raise bad_json("filter: event_format must be client or federation")
    return Filter(
        key=orjson.dumps(value, option=orjson.OPT_SORT_KEYS),
        fields=None if fields is None else tuple(tuple(split_path(field)) for field in fields),
        federation_format=format_ == "federation",
        presence=_event_filter(value.get("presence"), "presence"),
        account_data=_event_filter(value.get("account_data"), "account_data"),
        rooms=_set(_ids(room, "rooms", "!")),
        not_rooms=frozenset(_ids(room, "not_rooms", "!") or ()),
        include_leave=bool(_flag(room, "include_leave")),
        ephemeral=_event_filter(room.get("ephemeral"), "ephemeral"),
        state=_event_filter(room.get("state"), "state"),
        timeline=_event_filter(room.get("timeline"), "timeline"),
        room_account_data=_event_filter(room.get("account_data"), "account_data"),
    )


def parse_room_event_filter(text: str | None) -> EventFilter:
    """Compile the `filter` parameter of `/messages` and `/context`.

    Raises:
        MatrixError: M_BAD_JSON or M_NOT_JSON.
    """
    if text is None:
        return EventFilter()
    return _event_filter(load_json(text), "filter")


def parse_event_filter(value: Any) -> EventFilter:
    """Compile the `filter` of a search.

    Raises:
        MatrixError: M_BAD_JSON.
    """
    return _event_filter(value, "filter")


def load_json(text: str) -> Any:
    """Parse a filter given as text.

    Raises:
        MatrixError: M_NOT_JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MatrixError("M_NOT_JSON", 400, "filter is not JSON") from error


def split_path(path: str) -> list[str]:
    """Split a dot-separated property path; a backslash escapes a dot or a backslash (appendices)."""
    parts = [""]
    characters = iter(path)
    for character in characters:
        if character == "\\":
            following = next(characters, "\\")
            parts[-1] += following if following in ".\\" else "\\" + following
        elif character == ".":
            parts.append("")
        else:
            parts[-1] += character
    return parts


NO_FILTER = parse_filter({})
