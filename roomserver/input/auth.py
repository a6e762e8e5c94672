"""Auth at the auth events, and at a state (server-server API, "Checks performed on receipt of a PDU", 3
to 6).
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from arbor.log.v1 import input_pb2
from matrixlib.event_auth import check_auth_events, check_event_auth, state_types_for
from matrixlib.events import Event, EventFormatError, EventTooLargeError, StateKey
from matrixlib.hashes import check_content_hash
from matrixlib.policy_servers import POLICY_KEY
from matrixlib.verdicts import Refused
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from roomserver.storage.events import REJECTED

VISIBILITY_KEY: Final = ("m.room.history_visibility", "")
STRIPPED_KEYS: Final = tuple(
    (name, "")
    for name in (
        "m.room.create",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.join_rules",
        "m.room.canonical_alias",
        "m.room.encryption",
    )
)


class Refusal(NamedTuple):
    """Why an event is not taken."""

    rule: str
    reason: str
    errcode: str = "M_FORBIDDEN"
    snapshot_id: int = 0
    """Of the state that refused it, where that is not the state before the event."""

    def message(self, index: int = 0) -> input_pb2.Rejection:
        """Return it as the contract has it."""
        return input_pb2.Rejection(
            rule=self.rule,
            reason=self.reason,
            errcode=self.errcode,
            event_index=index,
            snapshot_id=self.snapshot_id,
        )


def format_refusal(error: EventFormatError) -> Refusal:
    """The refusal of an event that is none."""
    if isinstance(error, EventTooLargeError):
        return Refusal("size", str(error), "M_TOO_LARGE")
    return Refusal("format", str(error), "M_BAD_JSON")


def refusal_of(refused: Refused) -> Refusal:
    """The refusal of an auth rule."""
    return Refusal(refused.rule, refused.reason)


def keys_needed(event: Event, is_local: bool) -> set[StateKey]:
    """The entries of state that judging and telling an event takes."""
    keys = set(state_types_for(event))
    keys.add(VISIBILITY_KEY)
    keys.add(POLICY_KEY)
    if event.state_key is not None:
        keys.add((event.type, event.state_key))
        if (
            event.type == "m.room.member"
            and is_local
            and event.content.get("membership") in ("invite", "knock")
        ):
            keys.update(STRIPPED_KEYS)
            keys.add(("m.room.member", event.sender))
    if event.type == "m.room.redaction":
        keys.add(("m.room.power_levels", ""))
        keys.add(("m.room.create", ""))
    return keys


class AuthEvents(NamedTuple):
    """An event's auth events as we have them."""

    events: list[Event]
    nids: tuple[int, ...]
    missing: list[str]
    rejected: set[str]
    elsewhere: list[str]
    """Ids of events that are here and of another room. Not to be parsed: that may have another version."""


def find_auth_events(batch: Batch, work: RoomWork, event: Event) -> AuthEvents:
    """Find the events that an event names as auth events; in room version 12 create is implied."""
    found: list[Event] = []
    nids: list[int] = []
    missing: list[str] = []
    rejected: set[str] = set()
    strays: list[str] = []
    current = {}
    for key in state_types_for(event):
        entry = work.entry(key)
        if entry is not None:
            current[entry.event.event_id] = entry
    elsewhere = [event_id for event_id in event.auth_links if event_id not in current]
    if elsewhere:
        batch.load_rows(elsewhere)
    for event_id in event.auth_links:
        entry = current.get(event_id)
        if entry is not None:
            nids.append(entry.nid)
            auth_event = entry.event
        else:
            row = batch.row_of(event_id)
            if row is None:
                missing.append(event_id)
                continue
            if row.room_nid != work.row.nid:
                strays.append(event_id)
                continue
            nids.append(row.nid)
            auth_event = batch.event(row.nid, event.room_version)
            if row.status == REJECTED:
                rejected.add(event_id)
        if event_id in event.auth_event_ids:
            found.append(auth_event)
    return AuthEvents(found, tuple(nids), missing, rejected, strays)


def check_at_auth_events(batch: Batch, event: Event, auth: AuthEvents) -> Refusal | None:
    """Judge an event by its own auth events, and those themselves."""
    if auth.elsewhere:
        # "If any event in `auth_events` has a `room_id` which does not match that of the event being
        # authorised, reject."
        rule = event.room_version.rule("auth_events.room_id")
        return Refusal(rule, f"{auth.elsewhere[0]} is of another room")
    verdict = check_auth_events(event, auth.events, rejected=auth.rejected)
    if isinstance(verdict, Refused):
        return refusal_of(verdict)
    state = {auth_event.key: auth_event for auth_event in auth.events if auth_event.is_state}
    if event.implied_create_event_id is not None:
        row = batch.row_of(event.implied_create_event_id)
        if row is not None:
            create = batch.event(row.nid, event.room_version)
            state[create.key] = create
    verdict = check_event_auth(event, state)
    return refusal_of(verdict) if isinstance(verdict, Refused) else None


def check_at_state(event: Event, state: Mapping[StateKey, Event]) -> Refusal | None:
    """Judge an event by a state."""
    verdict = check_event_auth(event, state)
    return refusal_of(verdict) if isinstance(verdict, Refused) else None


def is_same_auth(event: Event, state: Mapping[StateKey, Event], keys: Iterable[StateKey]) -> bool:
    """Whether an event's auth events are exactly what the state has under the keys: one check is enough
    then.
    """
    ids = {state[key].event_id for key in keys if key in state}
    return ids == set(event.auth_links)


def check_hash(event: Event) -> bool:
    """Whether the content hash is right; it was checked by whoever wrote the event, and is checked again."""
    return check_content_hash(event.pdu, checked=event.room_version.strict_canonical_json)
