"""What all parts of one answer share, and how an event is rendered for its reader."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from syncapi.applied import StoredEvent
from syncapi.filters import Filter
from syncapi.rendering import full_event, select_fields
from syncapi.sync.sent_members import SentMembers
from syncapi.visibility import TIMELINE, Past, membership_at


@dataclass(slots=True)
class Reader:
    """Who reads, and in which form."""

    user_id: str
    device_id: str
    filter: Filter
    ignored: frozenset[str] = frozenset()
    # federation format: event id -> PDU, fetched beforehand; empty: client format
    pdus: Mapping[str, bytes] = field(default_factory=dict)
    # event id -> `m.relations`, where anything relates to the event
    bundles: dict[str, bytes] = field(default_factory=dict)
    # event ids that were rendered, with the federation format
    rendered: set[str] = field(default_factory=set)
    # room -> users whose membership events the client has; for lazy loading without redundant members
    known_members: Mapping[str, AbstractSet[str]] = field(default_factory=dict)
    sent_members: SentMembers = field(default_factory=SentMembers)

    def note_members(self, room_id: str, events: Iterable[StoredEvent], *, whole: bool) -> None:
        """Note whose membership events the client gets of a room. `whole`: it gets the room as if it were new."""
        if self.filter.remembers_members:
            self.note_users(room_id, members_among(events))
            if whole:
                self.sent_members.whole.add(room_id)

    def note_users(self, room_id: str, users: AbstractSet[str]) -> None:
        """Note users whose membership events the client gets."""
        if users:
            self.sent_members.rooms[room_id] = users

    def render(self, event: StoredEvent, past: Past, members: Mapping[int, str]) -> bytes:
        """Return an event as this reader gets it."""
        if self.filter.federation_format:
            self.rendered.add(event.event_id)
            if (pdu := self.pdus.get(event.event_id)) is not None:
                return pdu
        rendered = full_event(
            event.body,
            event.unsigned,
            membership_at(past, event, members),
            transaction_id=transaction_id(event, self.user_id, self.device_id),
            relations=self.bundles.get(event.event_id) if self.bundles else None,
        )
        return rendered if self.filter.fields is None else self._with_fields(rendered)

    def _with_fields(self, rendered: bytes) -> bytes:
        return select_fields(rendered, [list(path) for path in self.filter.fields or ()])

    def render_all(self, events: Iterable[StoredEvent], past: Past, members: Mapping[int, str]) -> bytes:
        """Return events as the inside of a JSON array."""
        if self.filter.federation_format or self.filter.fields is not None:
            return b",".join([self.render(event, past, members) for event in events])
        # Nearly all of them are the common case, thousands in a large room: it is done here, without calls.
        bundles, user_id = self.bundles, self.user_id
        since, until, membership = 0, 0, b""
        rendered: list[bytes] = []
        for event in events:
            position = event.position
            special = (event.txn_id is not None and event.sender == user_id) or event.event_id in bundles
            if special or (event.placement != TIMELINE and position > 0):
                rendered.append(self.render(event, past, members))
                continue
            if not since <= position < until:
                since, until, name = past.span_at(position)
                membership = name.encode()
            rendered.append(
                b'%b,"unsigned":{"membership":"%b"%b}}' % (event.body, membership, event.unsigned or b"")
            )
        return b",".join(rendered)


def members_among(events: Iterable[StoredEvent]) -> frozenset[str]:
    """Return the users whose membership events are among these."""
    return frozenset(
        event.state_key for event in events if event.type == "m.room.member" and event.state_key is not None
    )


def transaction_id(event: StoredEvent, user_id: str, device_id: str) -> str | None:
    """Return the transaction id that the reader's device sent the event with; None: it did not."""
    if event.txn_id is None or event.sender != user_id or event.txn_device != device_id:
        return None
    return event.txn_id
