"""Authorisation rules of room versions 1 to 12 (room versions, "Authorisation rules"; server-server API,
"Auth events selection", "Checks performed on receipt of a PDU").

Gather, then decide: ``auth_types_for_event`` says which state entries are needed, the caller loads them,
``check_event_auth`` decides against them. An event received is judged three times by its receiver: against
its own auth events (after ``check_auth_events`` has judged those themselves), against the state before it,
and against the current state of the room; the caller chooses the state, the rules are these.

A refusal names the room version and the number of the rule on that version's page. Signatures are the
caller's business (``signing.event_signers``).
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any

from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_user_id, server_name_of
from matrixlib.membership_auth import JOIN_RULES_KEY, check_membership, membership_of
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels
from matrixlib.power_levels_auth import check_power_levels
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.third_party_invites import third_party_token
from matrixlib.verdicts import ALLOWED, Allowed, Refused, Verdict, refuse

__all__ = [
    "ALLOWED",
    "Allowed",
    "Refused",
    "Verdict",
    "auth_types_for",
    "auth_types_for_event",
    "check_auth_events",
    "check_event_auth",
    "state_types_for",
]

_BASE = frozenset({CREATE_KEY, POWER_LEVELS_KEY})
_BASE_WITHOUT_CREATE = frozenset({POWER_LEVELS_KEY})


def auth_types_for_event(
    room_version: RoomVersion, event_type: str, sender: str, state_key: str | None, content: Mapping[str, Any]
) -> frozenset[StateKey]:
    """The state entries to select as an event's `auth_events`, as `(type, state_key)`; those that exist are
    taken.

    (Server-server API, "Auth events selection".) Empty for the create event. In room version 12 the create
    event is not among them, although ``check_event_auth`` needs it: ``state_types_for`` adds it.
    """
    if event_type == "m.room.create":
        return frozenset()
    # "The current `m.room.power_levels` event", "depending on the room version, the `m.room.create` event"
    base = _BASE_WITHOUT_CREATE if room_version.room_id_is_create_hash else _BASE
    # "The sender's current `m.room.member` event"
    if event_type != "m.room.member":
        return base | {("m.room.member", sender)}
    types = {*base, ("m.room.member", sender)}
    # "The target's current `m.room.member` event"
    if state_key is not None:
        types.add(("m.room.member", state_key))
    membership = content.get("membership")
    # "If `membership` is `join`, `invite` or `knock`, the current `m.room.join_rules` event"
    if membership in ("join", "invite", "knock"):
        types.add(JOIN_RULES_KEY)
    # "If membership is `invite` and `content` contains a `third_party_invite` property, ..."
    if membership == "invite":
        token = third_party_token(content)
        if token is not None:
            types.add(("m.room.third_party_invite", token))
    # "If `membership` is `join`, `content.join_authorised_via_users_server` is present, and the room version
    # supports
    # restricted rooms ..."
    if membership == "join" and room_version.restricted_joins:
        authoriser = content.get("join_authorised_via_users_server")
        if isinstance(authoriser, str):
            types.add(("m.room.member", authoriser))
    return frozenset(types)


def auth_types_for(event: Event) -> frozenset[StateKey]:
    """``auth_types_for_event`` of an event that exists."""
    return auth_types_for_event(event.room_version, event.type, event.sender, event.state_key, event.content)


def state_types_for(event: Event) -> frozenset[StateKey]:
    """The state entries that ``check_event_auth`` needs: the auth types and, in every version, create."""
    types = auth_types_for(event)
    return types | {CREATE_KEY} if types else types


def check_auth_events(
    event: Event, auth_events: Iterable[Event], *, rejected: Container[str] = frozenset()
) -> Verdict:
    """Judge an event's `auth_events` themselves (the rule "Considering the event's `auth_events`").

    ``auth_events``: all the events that it names; that none is missing is the caller's business.
    ``rejected``: ids of events that were rejected.
    """
    version = event.room_version
    if event.type == "m.room.create":
        return ALLOWED
    if version.room_id_is_create_hash and event.implied_create_event_id in rejected:
        return refuse(version, "room_id", "the create event was rejected")
    expected = auth_types_for(event)
    seen: set[StateKey] = set()
    for auth_event in auth_events:
        state_key = auth_event.state_key
        key = (auth_event.type, state_key or "")
        # "If there are duplicate entries for a given `type` and `state_key` pair, reject."
        if key in seen:
            return refuse(version, "auth_events.duplicate", f"two auth events for {key}")
        seen.add(key)
        # "If there are entries whose `type` and `state_key` don't match those specified by the auth events
        # selection
        # algorithm described in the server specification, reject."
        if state_key is None or key not in expected:
            return refuse(version, "auth_events.selection", f"{key} is no auth event of this event")
        # "If there are entries which were themselves rejected ..., reject."
        if auth_event.event_id in rejected:
            return refuse(version, "auth_events.rejected", f"{auth_event.event_id} was rejected")
        # "If any event in `auth_events` has a `room_id` which does not match that of the event being
        # authorised"
        if auth_event.room_id != event.room_id:
            return refuse(version, "auth_events.room_id", f"{auth_event.event_id} is of another room")
    # "If there is no `m.room.create` event among the entries, reject."
    if not version.room_id_is_create_hash and CREATE_KEY not in seen:
        return refuse(version, "auth_events.no_create", "no create event among the auth events")
    return ALLOWED


def check_event_auth(event: Event, state: Mapping[StateKey, Event]) -> Verdict:
    """Judge an event against a state `(type, state_key) -> event`, of which ``state_types_for`` are needed.

    Pure and total: for every event that ``parse_event`` makes there is a verdict.
    """
    version = event.room_version
    event_type = event.type
    # "If type is `m.room.create`:"
    if event_type == "m.room.create":
        return _check_create(event)
    create = state.get(CREATE_KEY)
    if create is None:
        rule = "room_id" if version.room_id_is_create_hash else "auth_events.no_create"
        return refuse(version, rule, "there is no create event")
    # "If the event's `room_id` is not an event ID for an accepted (not rejected) `m.room.create` event, with
    # the sigil
    # `!` instead of `$`, reject."
    if version.room_id_is_create_hash and create.event_id[1:] != event.room_id[1:]:
        return refuse(version, "room_id", "the room id is not that of the create event")
    # "If the `content` of the `m.room.create` event in the room state has the property `m.federate` set to
    # `false`, and
    # the `sender` domain of the event does not match the `sender` domain of the create event, reject."
    if create.content.get("m.federate") is False and server_name_of(event.sender) != server_name_of(
        create.sender
    ):
        return refuse(version, "federate", "the room does not federate")
    if event_type == "m.room.aliases" and version.aliases_rule:
        return _check_aliases(event)
    levels = PowerLevels(version, create, state.get(POWER_LEVELS_KEY))
    # "If type is `m.room.member`:"
    if event_type == "m.room.member":
        return check_membership(event, state, levels)
    # "If the `sender`'s current membership state is not `join`, reject."
    if membership_of(state, event.sender) != "join":
        return refuse(version, "sender_joined", "the sender is not in the room")
    sender_level = levels.user_level(event.sender)
    # "If type is `m.room.third_party_invite`: Allow if and only if `sender`'s current power level is greater
    # than or
    # equal to the *invite level*."
    if event_type == "m.room.third_party_invite":
        if sender_level >= levels.named("invite"):
            return ALLOWED
        return refuse(version, "third_party_invite", "the sender's level is below the invite level")
    # "If the event type's *required power level* is greater than the `sender`'s power level, reject."
    state_key = event.state_key
    if levels.required_level(event_type, state_key is not None) > sender_level:
        return refuse(version, "required_level", "the sender's level is below the required one")
    # "If the event has a `state_key` that starts with an `@` and does not match the `sender`, reject."
    if state_key is not None and state_key[:1] == "@" and state_key != event.sender:
        return refuse(version, "state_key", "the state key is another user's")
    if event_type == "m.room.power_levels":
        return check_power_levels(event, state, levels)
    if event_type == "m.room.redaction" and version.redaction_rule:
        return _check_redaction(event, levels)
    # "Otherwise, allow."
    return ALLOWED


def _check_create(event: Event) -> Verdict:
    version = event.room_version
    content = event.content
    # "If it has any `prev_events`, reject."
    if event.prev_event_ids:
        return refuse(version, "create.prev_events", "create is not the first event")
    if version.room_id_is_create_hash:
        # "If the event has a `room_id`, reject."
        if "room_id" in event.pdu:
            return refuse(version, "create.room_id", "the event has a room_id")
    # "If the domain of the `room_id` does not match the domain of the `sender`, reject."
    elif server_name_of(event.room_id) != server_name_of(event.sender):
        return refuse(version, "create.room_id", "the room id is of another server than the sender")
    # "If `content.room_version` is present and is not a recognised version, reject."
    if "room_version" in content and get_room_version(content["room_version"]) is None:
        return refuse(version, "create.room_version", "unknown room version")
    # "If `content` has no `creator` property, reject."
    if version.creator_in_content and "creator" not in content:
        return refuse(version, "create.creator", "no creator")
    # "If `additional_creators` is present in `content` and is not an array of strings where each string
    # passes the same
    # user ID validation applied to `sender`, reject."
    if version.privileged_creators and "additional_creators" in content:
        additional = content["additional_creators"]
        if not isinstance(additional, list) or not all(is_valid_user_id(user) for user in additional):
            return refuse(
                version, "create.additional_creators", "additional_creators is no array of user ids"
            )
    return ALLOWED


def _check_aliases(event: Event) -> Verdict:
    version = event.room_version
    # "If event has no `state_key`, reject."
    if event.state_key is None:
        return refuse(version, "aliases.state_key", "no state_key")
    # "If sender's domain doesn't match `state_key`, reject."
    if server_name_of(event.sender) != event.state_key:
        return refuse(version, "aliases.domain", "the state key is not the sender's server")
    return ALLOWED


def _check_redaction(event: Event, levels: PowerLevels) -> Verdict:
    version = event.room_version
    # "If the `sender`'s power level is greater than or equal to the *redact level*, allow."
    if levels.user_level(event.sender) >= levels.named("redact"):
        return ALLOWED
    # "If the domain of the `event_id` of the event being redacted is the same as the domain of the `event_id`
    # of the
    # `m.room.redaction`, allow."
    if event.redacts is not None and server_name_of(event.redacts) == server_name_of(event.event_id):
        return ALLOWED
    return refuse(version, "redaction.otherwise", "the sender may not redact another server's event")
