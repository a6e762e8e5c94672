"""Checking and building events of local users on a head."""

import secrets
from collections.abc import Iterable, Mapping

from clientapi.clock import Clock
from clientapi.rooms.head import Head
from clientapi.rooms.requests import AlreadyThere, Draft, Wish
from clientapi.rooms.verdicts import error_of_refusal
from matrixlib.event_auth import Refused, Verdict, auth_types_for_event, check_event_auth
from matrixlib.event_builder import build_event, next_depth
from matrixlib.events import Event, EventFormatError, EventTooLargeError, StateKey
from matrixlib.identifiers import server_name_of
from matrixlib.power_levels import CREATE_KEY
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import SigningKey
from servicekit.errors import MatrixError

# Redactions are judged by their target, so their verdict is none of (type, sender) alone.
_NOT_REMEMBERED = frozenset({"m.room.redaction"})


class EventBuilder:
    """Builds, hashes and signs events of the local server names."""

    def __init__(self, signing_keys: Mapping[str, SigningKey], clock: Clock) -> None:
        self._keys = signing_keys
        self._clock = clock
        self._last_create_ms = 0

    def build(
        self,
        room_version: RoomVersion,
        room_id: str | None,
        sender: str,
        draft: Draft,
        prev_events: Iterable[str],
        auth_events: Iterable[Event],
        depth: int,
    ) -> Event:
        """Build, hash and sign an event.

        Args:
            room_id: None for a create event whose hash makes the room id.
            depth: of the greatest previous event.

        Raises:
            MatrixError: M_TOO_LARGE, or M_BAD_JSON for content that no event may have.
        """
        server_name = server_name_of(sender)
        now_ms = self._clock()
        if room_id is None:
            # The room's id is a hash of this event: two rooms made alike in one millisecond would be the same.
            now_ms = self._last_create_ms = max(now_ms, self._last_create_ms + 1)
        event_id = None
        if not room_version.hashed_event_ids:
            event_id = f"${secrets.token_urlsafe(18)}:{server_name}"
        try:
            return build_event(
                room_version,
                room_id=room_id,
                sender=sender,
                type=draft.type,
                content=draft.content,
                state_key=draft.state_key,
                redacts=draft.redacts,
                prev_events=list(prev_events),
                auth_event_ids=[event.event_id for event in auth_events],
                depth=next_depth(room_version, (depth,)),
                origin_server_ts=now_ms,
                server_name=server_name,
                signing_key=self._keys[server_name],
                event_id=event_id,
            )
        except EventTooLargeError as error:
            raise MatrixError("M_TOO_LARGE", 413, f"The event is too large: {error}") from None
        except EventFormatError as error:
            raise MatrixError("M_BAD_JSON", 400, f"This cannot be an event: {error}") from None

    def build_on(
        self, head: Head, room_id: str, sender: str, draft: Draft, auth_state: Mapping[StateKey, Event]
    ) -> Event:
        """Build an event on a head, with the auth events among `auth_state`. Raises as `build`."""
        return self.build(
            head.room_version, room_id, sender, draft, head.extremities, auth_state.values(), head.depth
        )


def needed_state(room_version: RoomVersion, sender: str, draft: Draft) -> frozenset[StateKey]:
    """Return which state entries an event needs to be authorised and judged."""
    types = auth_types_for_event(room_version, draft.type, sender, draft.state_key, draft.content)
    return types if CREATE_KEY in types else types | {CREATE_KEY}


def check_and_build(
    builder: EventBuilder, head: Head, room_id: str, wish: Wish
) -> tuple[Event, Mapping[StateKey, Event]] | AlreadyThere:
    """Return what a wish comes to on a head, which has what that needs: an event with its auth events by key.

    Raises:
        MatrixError: it is not allowed, or cannot be an event.
    """
    draft = wish.draft
    auth_keys = auth_types_for_event(
        head.room_version, draft.type, wish.sender, draft.state_key, draft.content
    )
    if wish.decide is not None:
        decided = wish.decide(head.room_version, head.select(wish.wanted | auth_keys | {CREATE_KEY}))
        if isinstance(decided, AlreadyThere):
            return decided
        draft = decided
    auth_state = head.select(auth_keys)
    # Check that the event is allowed.
    state = auth_state if CREATE_KEY in auth_state else {**auth_state, **head.select((CREATE_KEY,))}
    verdict = check_allowed(head, room_id, wish.sender, draft, state)
    if isinstance(verdict, Refused):
        raise error_of_refusal(verdict)
    # Build, hash, sign.
    return builder.build_on(head, room_id, wish.sender, draft, auth_state), auth_state


def check_allowed(
    head: Head, room_id: str, sender: str, draft: Draft, state: Mapping[StateKey, Event]
) -> Verdict:
    """Judge a draft by the auth rules against the state that `needed_state` names."""
    remember = draft.state_key is None and draft.type not in _NOT_REMEMBERED
    if remember and (known := head.verdict_on(draft.type, sender)) is not None:
        return known
    verdict = check_event_auth(as_event(head.room_version, room_id, sender, draft, head.extremities), state)
    if remember:
        head.note_verdict(draft.type, sender, verdict)
    return verdict


def as_event(
    room_version: RoomVersion, room_id: str, sender: str, draft: Draft, prev_events: tuple[str, ...]
) -> Event:
    """Return a draft in the form that the auth rules take, before it is built and signed."""
    content = dict(draft.content)
    return Event(
        event_id="",
        room_id=room_id,
        type=draft.type,
        state_key=draft.state_key,
        sender=sender,
        content=content,
        depth=0,
        origin_server_ts=0,
        prev_event_ids=prev_events,
        auth_event_ids=(),
        redacts=draft.redacts,
        # It will be signed by the sender's server, which some rules ask for.
        pdu={"content": content, "signatures": {server_name_of(sender): {"ed25519:to_come": ""}}},
        room_version=room_version,
    )
