"""`POST /search`: the events whose text has all words of a term, in the rooms that the user is or was in.

Rooms' timelines are read from their ends, merged, newest first; a request looks at `MAX_SCANNED` events at most, and
its `next_batch` leads on from there. So searching costs nothing while nobody searches.

    room A  ---- ---- --[page]  \
    room B  -- -- ----- [page]   > by position, newest first > words > may see > results
    room C  ----------- [page]  /

NOTSPEC: `next_batch` of groups is left out; the one of all results leads on. What was back-filled is not found.
"""

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from servicekit.errors import MatrixError, bad_json, invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response
from syncapi import access
from syncapi.applied import StoredEvent
from syncapi.auth import Caller
from syncapi.filters import EventFilter, parse_event_filter
from syncapi.http.edge import Edge
from syncapi.http.event import load_side
from syncapi.http.rendering import render_list
from syncapi.rendering import REDACTED
from syncapi.storage import events as event_storage
from syncapi.storage import members, relations, state
from syncapi.storage.accounts import load_account_entry
from syncapi.visibility import visible
from syncapi.window import parse_ignored

MAX_SCANNED = 10_000
MAX_RESULTS = 500
MAX_LIMIT = 100
MAX_CONTEXT = 50
MAX_WORDS = 20
MAX_ROOMS = 10_000
PAGE = 100
KEYS = {
    "content.body": ("m.room.message", "body"),
    "content.name": ("m.room.name", "name"),
    "content.topic": ("m.room.topic", "topic"),
}
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"(s1|r1)_([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What is searched for; `before` None: from the newest. `offset` is of results by rank."""

    words: tuple[str, ...]
    fields: dict[str, str]
    filter: EventFilter
    by_rank: bool
    context: tuple[int, int, bool] | None
    include_state: bool
    group_by: tuple[str, ...]
    limit: int
    before: int | None = None
    offset: int = 0

    @property
    def plain(self) -> tuple[bytes, ...]:
        """Return the words of ASCII, which stand in an event's JSON as they are, case apart."""
        return tuple(word.encode() for word in self.words if word.isascii())


@dataclass(slots=True)
class _Match:
    event: StoredEvent
    rank: float
    allowed: access.Access
    members: dict[int, str]


def _flag(value: dict[str, Any], key: str) -> bool:
    """Return an optional switch. Raises MatrixError M_BAD_JSON if it is none."""
    switch = value.get(key, False)
    if switch is not None and not isinstance(switch, bool):
        raise bad_json(f"{key} must be true or false")
    return bool(switch)


def words_of(text: str) -> list[str]:
    """Return a text's words, without their case."""
    return _WORD.findall(text.casefold())


def parse_criteria(body: Any, next_batch: str | None) -> Criteria | None:
    """Check a request's body; None: it asks for no category that is known.

    Raises:
        MatrixError: M_BAD_JSON, M_MISSING_PARAM or M_INVALID_PARAM.
    """
    categories = body.get("search_categories") if isinstance(body, dict) else None
    if not isinstance(categories, dict):
        raise bad_json("search_categories must be an object")
    wanted = categories.get("room_events")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise bad_json("room_events must be an object")
    term = wanted.get("search_term")
    if term is None:
        raise missing_param("search_term is missing")
    if not isinstance(term, str):
        raise bad_json("search_term must be a string")
    keys = wanted.get("keys", list(KEYS))
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in KEYS for key in keys):
        raise bad_json("keys must be some of " + ", ".join(KEYS))
    order = wanted.get("order_by", "rank")
    if order not in ("rank", "recent"):
        raise bad_json("order_by must be rank or recent")
    filter_ = parse_event_filter(wanted.get("filter"))
    before, offset = _place(next_batch, order)
    return Criteria(
        tuple(dict.fromkeys(words_of(term)[:MAX_WORDS])),
        dict(KEYS[key] for key in keys),
        filter_,
        order == "rank",
        _context(wanted.get("event_context")),
        _flag(wanted, "include_state"),
        _groups(wanted.get("groupings")),
        max(filter_.capped_limit(maximum=MAX_LIMIT), 1),
        before,
        offset,
    )


def _place(token: str | None, order: str) -> tuple[int | None, int]:
    if token is None:
        return None, 0
    match = _TOKEN.fullmatch(token)
    if match is None or (match[1] == "r1") != (order == "rank"):
        raise invalid_param("next_batch is not a token of this search")
    return (None, int(match[2])) if order == "rank" else (int(match[2]), 0)


def _context(value: Any) -> tuple[int, int, bool] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise bad_json("event_context must be an object")
    limits = [value.get(key, 5) for key in ("before_limit", "after_limit")]
    if not all(isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0 for limit in limits):
        raise bad_json("before_limit and after_limit must be numbers")
    return (
        min(limits[0], MAX_CONTEXT),
        min(limits[1], MAX_CONTEXT),
        _flag(value, "include_profile"),
    )


def _groups(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    listed = value.get("group_by", []) if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise bad_json("groupings must be an object with a list group_by")
    keys = [item.get("key") if isinstance(item, dict) else None for item in listed]
    if not all(key in ("room_id", "sender") for key in keys):
        raise bad_json("key of group_by must be room_id or sender")
    return tuple(dict.fromkeys(str(key) for key in keys))


def _room_events(connection: Connection, room_id: str, through: int) -> Iterator[StoredEvent]:
    """Walk a room's timeline, newest first."""
    while True:
        page = event_storage.load_timeline(connection, room_id, 0, through, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        through = page[-1].position - 1


def _rank(event: StoredEvent, criteria: Criteria, plain: tuple[bytes, ...]) -> float:
    """Return how well an event's text fits; 0: it lacks a word."""
    name = criteria.fields.get(event.type)
    if name is None or event.flags & REDACTED:
        return 0
    lowered = event.body.lower()
    if not all(word in lowered for word in plain):
        return 0  # most events end here, before they are decoded
    text = orjson.loads(event.body + b"}")["content"].get(name)
    if not isinstance(text, str):
        return 0
    words = words_of(text)
    counts = [words.count(word) for word in criteria.words]
    return sum(counts) / (1 + len(words)) if all(counts) else 0


def _accesses(connection: Connection, caller: Caller, filter_: EventFilter) -> dict[str, access.Access]:
    rooms = None if filter_.rooms is None else _with_predecessors(connection, filter_.rooms)
    found: dict[str, access.Access] = {}
    for row in members.load_rooms_of_user(connection, caller.user_id):
        if row.forgotten or row.joined_until is None or row.room_id in filter_.not_rooms:
            continue
        if rooms is not None and row.room_id not in rooms:
            continue
        try:
            found[row.room_id] = access.find_access(connection, row.room_id, caller.user_id)
        except MatrixError:
            continue
    return found


def _with_predecessors(connection: Connection, room_ids: Iterable[str]) -> set[str]:
    """Add the rooms that these were upgraded from: to who searches in a room it is one with those before it.

    A room is believed to follow another only if the other's tombstone says so, too.
    """
    found: set[str] = set()
    pending = list(room_ids)
    while pending and len(found) < MAX_ROOMS:
        room_id = pending.pop()
        if room_id in found:
            continue
        found.add(room_id)
        predecessor = _content(connection, room_id, "m.room.create").get("predecessor")
        old_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
        if isinstance(old_id, str):
            tombstone = _content(connection, old_id, "m.room.tombstone")
            if tombstone.get("replacement_room") == room_id:
                pending.append(old_id)
    return found


def _content(connection: Connection, room_id: str, type_: str) -> dict[str, Any]:
    event = state.load_state_event(connection, room_id, type_, "")
    content: dict[str, Any] = {} if event is None else orjson.loads(event.body + b"}")["content"]
    return content


def find_matches(
    connection: Connection, caller: Caller, criteria: Criteria, ignored: frozenset[str]
) -> tuple[list[_Match], int | None]:
    """Return the matches of one request, newest first, and the position to go on before; None: that is all."""
    if not criteria.words:
        return [], None
    before, plain = criteria.before, criteria.plain
    accesses = _accesses(connection, caller, criteria.filter)
    sources = [
        _room_events(
            connection, room_id, allowed.through if before is None else min(allowed.through, before - 1)
        )
        for room_id, allowed in accesses.items()
    ]
    wanted = MAX_RESULTS if criteria.by_rank else criteria.limit
    found: list[_Match] = []
    merged = heapq.merge(*sources, key=lambda event: -event.position)
    for scanned, event in enumerate(merged):
        if len(found) == wanted or scanned == MAX_SCANNED:
            return found, event.position + 1
        if event.type not in criteria.fields or (event.sender in ignored and event.state_key is None):
            continue
        if not criteria.filter.passes(event.type, event.sender, event.flags):
            continue
        rank = _rank(event, criteria, plain)
        if not rank:
            continue
        allowed = accesses[event.room_id]
        seen, outside = visible(connection, allowed.past, [event])
        # What the reader gets redacted is not found by its words.
        if seen == [event] and relations.keep_related(connection, seen, criteria.filter):
            found.append(_Match(event, rank, allowed, dict(outside)))
    return found, None


def load_results(connection: Connection, caller: Caller, criteria: Criteria) -> bytes:
    """Return the body of the answer."""
    ignored = parse_ignored(load_account_entry(connection, caller.user_id, "m.ignored_user_list"))
    found, before = find_matches(connection, caller, criteria, ignored)
    count = len(found)
    next_batch: str | None = None if before is None else f"s1_{before}"
    if criteria.by_rank:
        found.sort(key=lambda match: (-match.rank, -match.event.position))
        shown = found[criteria.offset : criteria.offset + criteria.limit]
        after = criteria.offset + criteria.limit
        next_batch = f"r1_{after}" if after < count else None
    else:
        shown = found
    results = [
        b'{"rank":%b,"result":%b%b}'
        % (
            orjson.dumps(match.rank),
            render_list(connection, caller, [match.event], match.allowed.past, match.members),
            _render_context(connection, caller, match, criteria, ignored),
        )
        for match in shown
    ]
    parts = [
        b'{"search_categories":{"room_events":{"count":%d' % count,
        b'"highlights":%b' % orjson.dumps(list(criteria.words)),
        b'"results":[%b]' % b",".join(results),
    ]
    if criteria.group_by:
        parts.append(b'"groups":%b' % orjson.dumps({key: _group(shown, key) for key in criteria.group_by}))
    if criteria.include_state:
        rooms = {match.event.room_id: match.allowed for match in shown}
        states = [
            b"%b:[%b]"
            % (
                orjson.dumps(room_id),
                render_list(
                    connection, caller, state.load_state(connection, room_id, allowed.at), allowed.past, {}
                ),
            )
            for room_id, allowed in rooms.items()
        ]
        parts.append(b'"state":{%b}' % b",".join(states))
    if next_batch is not None:
        parts.append(b'"next_batch":%b' % orjson.dumps(next_batch))
    return b",".join(parts) + b"}}}"


def _group(shown: list[_Match], key: str) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for match in shown:
        value = match.event.room_id if key == "room_id" else match.event.sender
        group = groups.setdefault(value, {"results": [], "order": len(groups)})
        group["results"].append(match.event.event_id)
    return groups


def _render_context(
    connection: Connection, caller: Caller, match: _Match, criteria: Criteria, ignored: frozenset[str]
) -> bytes:
    if criteria.context is None:
        return b""
    event, allowed, memberships = match.event, match.allowed, match.members
    before_limit, after_limit, profiles = criteria.context
    sides = [
        load_side(
            connection,
            allowed,
            event,
            memberships,
            EventFilter(),
            ignored,
            backwards=backwards,
            count=count,
        )
        for backwards, count in ((True, before_limit), (False, after_limit))
    ]
    (earlier, start), (later, end) = sides
    parts = [
        b'"start":%b,"end":%b' % (orjson.dumps(str(start)), orjson.dumps(str(end))),
        b'"events_before":[%b]' % render_list(connection, caller, earlier, allowed.past, memberships),
        b'"events_after":[%b]' % render_list(connection, caller, later, allowed.past, memberships),
    ]
    if profiles:
        senders = sorted({other.sender for other in (*earlier, event, *later)})
        known: dict[str, dict[str, str]] = {}
        for member in state.load_members(connection, event.room_id, senders, event.position):
            content = orjson.loads(member.body + b"}")["content"]
            known[member.state_key or ""] = {
                key: content[key]
                for key in ("displayname", "avatar_url")
                if isinstance(content.get(key), str)
            }
        parts.append(b'"profile_info":%b' % orjson.dumps(known))
    return b',"context":{%b}' % b",".join(parts)


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def search(request: Request) -> Response:
        caller = await edge.caller(request)
        edge.searches.check(caller.user_id)
        criteria = parse_criteria(await request.json(), request.query.get("next_batch"))
        if criteria is None:
            return json_response(b'{"search_categories":{}}')
        return json_response(await edge.read(load_results, caller, criteria))

    router.add("POST", "/_matrix/client/v3/search", search)
