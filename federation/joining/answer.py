"""What send_join answered, and later the state that it left members out of, checked; their parts for the RoomServer."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbor.roomserver.v1 import query_pb2
from federation.receipt.ordering import with_whole_auth
from federation.receipt.pdu_checks import PduChecker
from federation.submit import event_message
from matrixlib.event_auth import Refused, check_event_auth
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_server_name
from matrixlib.room_versions import RoomVersion

CREATE: StateKey = ("m.room.create", "")
IMPORT_PART_BYTES = 1024 * 1024
MAX_STATE_EVENTS = 500_000
# They go with the entry that commits the import, which must fit one message of the log.
MAX_SERVERS_BYTES = 500 * 1024


class JoinFailed(Exception):
    """What the resident server gave cannot be joined with."""


@dataclass(frozen=True, slots=True)
class RoomAtJoin:
    """What another server answered, checked: the join as signed by all, the state before it and its auth chain.

    Each of `events` comes after its auth events; those of `state_ids` are the state. `servers`: those in the room,
    where members were left out of the state; None: they were not.
    """

    join: Event
    events: tuple[Event, ...]
    state_ids: frozenset[str]
    servers: tuple[str, ...] | None = None


async def check_answer(checker: PduChecker, join: Event, answer: Mapping[str, Any]) -> RoomAtJoin:
    """Check send_join's answer: every event like any other that comes in, and the join against the state.

    Raises:
        JoinFailed: the room cannot be joined with it.
    """
    version = join.room_version
    servers = _servers(answer.get("servers_in_room")) if answer.get("members_omitted") is True else None
    join = await _signed_join(checker, join, answer.get("event"))
    state, chain = await _checked_state(checker, join, answer, "state")
    by_key = _by_key(state)
    create = by_key[CREATE]
    _check_create(create, version)
    # Each event's auth events must be there, or nothing could ever be judged by it.
    known = {**chain, **state}
    complete = with_whole_auth(known)
    if create.event_id not in complete:
        raise JoinFailed("the create event cannot stand")
    by_key = {key: event for key, event in by_key.items() if event.event_id in complete}
    verdict = check_event_auth(join, by_key)
    if isinstance(verdict, Refused):
        raise JoinFailed(f"the join is not allowed by the state given: rule {verdict.rule}, {verdict.reason}")
    state_ids = frozenset(event.event_id for event in by_key.values())
    return RoomAtJoin(join, tuple(complete.values()), state_ids, servers)


async def check_members(checker: PduChecker, join: Event, create_id: str, answer: Any) -> RoomAtJoin:
    """Check what `/state` answered about our join: the members of the state before it, with their auth chains.

    The rest of the state stands as send_join told it; here it only counts among the auth events.

    Args:
        create_id: the room's create event, known since the join.

    Raises:
        JoinFailed: the room cannot be completed with it.
    """
    if not isinstance(answer, dict):
        raise JoinFailed("the state is not an object")
    state, chain = await _checked_state(checker, join, answer, "pdus")
    if _by_key(state)[CREATE].event_id != create_id:
        raise JoinFailed("the state is of another room")
    known = {
        event_id: event
        for event_id, event in {**chain, **state}.items()
        if not event.is_create or event_id == create_id
    }
    events = tuple(with_whole_auth(known).values())
    members = (event for event in events if event.type == "m.room.member" and event.event_id in state)
    return RoomAtJoin(join, events, frozenset(event.event_id for event in members))


async def _checked_state(
    checker: PduChecker, join: Event, answer: Mapping[str, Any], key: str
) -> tuple[dict[str, Event], dict[str, Event]]:
    """The state and the auth chain of an answer, without the events that do not pass the checks."""
    state_pdus, chain_pdus = answer.get(key), answer.get("auth_chain")
    if not isinstance(state_pdus, list) or not isinstance(chain_pdus, list):
        raise JoinFailed(f"{key} and auth_chain are not arrays")
    if len(state_pdus) + len(chain_pdus) > MAX_STATE_EVENTS:
        raise JoinFailed("the room's state is too large")
    version = join.room_version
    return (
        _distinct(await checker.check(state_pdus, version, room_id=join.room_id)),
        _distinct(await checker.check(chain_pdus, version, room_id=join.room_id)),
    )


def _by_key(state: Mapping[str, Event]) -> dict[StateKey, Event]:
    by_key: dict[StateKey, Event] = {}
    for event in state.values():
        if not event.is_state or event.key in by_key:
            raise JoinFailed("the state holds two events under one key, or no state event")
        by_key[event.key] = event
    if CREATE not in by_key:
        raise JoinFailed("the state has no create event")
    return by_key


def _servers(told: Any) -> tuple[str, ...]:
    """The servers that are told to be in a room whose members are not."""
    if not isinstance(told, list) or not told or not all(is_valid_server_name(name) for name in told):
        raise JoinFailed("servers_in_room is no array of server names, though members were left out")
    names = tuple(dict.fromkeys(told))
    if sum(len(name) + 2 for name in names) > MAX_SERVERS_BYTES:
        raise JoinFailed("servers_in_room is too long")
    return names


async def _signed_join(checker: PduChecker, join: Event, returned: Any) -> Event:
    """The join with the resident's signature, where it had to sign; else our own."""
    if "join_authorised_via_users_server" not in join.content:
        return join
    checked = await checker.check_one(returned, join.room_version, room_id=join.room_id)
    if not isinstance(checked, Event):
        raise JoinFailed(f"the join came back unusable: {checked.reason}")
    if checked.event_id != join.event_id or checked.content != join.content:
        raise JoinFailed("the join came back changed")
    return checked


def _distinct(checked: Sequence[Any]) -> dict[str, Event]:
    return {event.event_id: event for event in checked if isinstance(event, Event)}


def _check_create(create: Event, version: RoomVersion) -> None:
    named = create.content.get("room_version", "1")
    if named != version.identifier:
        raise JoinFailed("the room is of another version than make_join said")


def import_id_of(job_id: str, room: RoomAtJoin) -> str:
    """The id of an import: another one where a later check of the answer let other events pass.

    (Parts of two different lists of events must never be mixed.)
    """
    digest = hashlib.sha256()
    for event in room.events:
        digest.update(event.event_id.encode())
        digest.update(b"|" if event.event_id in room.state_ids else b",")
    return f"{job_id}-{digest.hexdigest()[:16]}"


async def parts_of(import_id: str, room: RoomAtJoin) -> AsyncIterator[query_pb2.ImportRequest]:
    """The parts in which a room's state goes to the RoomServer, about a megabyte each."""
    for number, chunk in enumerate(_by_size(room.events), 1):
        yield query_pb2.ImportRequest(
            import_id=import_id,
            room_id=room.join.room_id,
            room_version=room.join.room_version.identifier,
            state=[event_message(event) for event in chunk if event.event_id in room.state_ids],
            auth_chain=[event_message(event) for event in chunk if event.event_id not in room.state_ids],
            part=number,
        )


def _by_size(events: Sequence[Event]) -> Iterator[list[Event]]:
    chunk: list[Event] = []
    size = 0
    for event in events:
        chunk.append(event)
        size += len(event.pdu_json) + 100
        if size >= IMPORT_PART_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
