"""The authorisation rules under "If type is `m.room.member`" (room versions 1 to 12, "Authorisation rules").

Called by ``event_auth`` only. The sentences quoted are those of version 12; what earlier versions lack is
asked of the ``RoomVersion``.
"""

from collections.abc import Mapping

from matrixlib.events import Event, StateKey
from matrixlib.identifiers import is_valid_user_id, server_name_of
from matrixlib.power_levels import CREATE_KEY, PowerLevels
from matrixlib.signing import signing_key_ids
from matrixlib.third_party_invites import check_third_party_invite
from matrixlib.verdicts import ALLOWED, Verdict, refuse

JOIN_RULES_KEY = ("m.room.join_rules", "")


def membership_of(state: Mapping[StateKey, Event], user_id: str) -> str:
    """A user's membership in a state; "leave" for a user whom the room does not know."""
    event = state.get(("m.room.member", user_id))
    return (event.membership if event is not None else None) or "leave"


def join_rule_of(state: Mapping[StateKey, Event]) -> str:
    """The join rule in a state; "invite" by default."""
    event = state.get(JOIN_RULES_KEY)
    rule = event.content.get("join_rule", "invite") if event is not None else "invite"
    return rule if isinstance(rule, str) else ""


def check_membership(event: Event, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    """Judge a member event against a state that holds the create event."""
    version = event.room_version
    content = event.content
    membership = content.get("membership")
    # "If there is no `state_key` property, or no `membership` property in `content`, reject."
    target = event.state_key
    if target is None or not isinstance(membership, str):
        return refuse(version, "member.format", "no state_key or no membership")
    if not is_valid_user_id(target):
        return refuse(version, "member.format", "the state_key is not a user id")
    # "If `content` has a `join_authorised_via_users_server` key: If the event is not validly signed by the
    # homeserver
    # of the user ID denoted by the key, reject." The signature itself was checked with all of
    # `event_signers`.
    if version.restricted_joins and "join_authorised_via_users_server" in content:
        authoriser = content["join_authorised_via_users_server"]
        if not is_valid_user_id(authoriser) or not signing_key_ids(event.pdu, server_name_of(authoriser)):
            return refuse(version, "member.authorised_signature", "not signed by the authorising server")
    if membership == "join":
        return _check_join(event, target, state, levels)
    if membership == "invite":
        return _check_invite(event, target, state, levels)
    if membership == "leave":
        return _check_leave(event, target, state, levels)
    if membership == "ban":
        return _check_ban(event, target, state, levels)
    if membership == "knock" and version.knocking:
        return _check_knock(event, target, state)
    # "Otherwise, the membership is unknown. Reject."
    return refuse(version, "member.unknown", "unknown membership")


def _check_join(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    version = event.room_version
    # "If the only previous event is an `m.room.create` and the `state_key` is the sender of the
    # `m.room.create`"
    create = state[CREATE_KEY]
    creator = create.content.get("creator") if version.creator_in_content else create.sender
    if event.prev_event_ids == (create.event_id,) and target == creator:
        return ALLOWED
    # "If the `sender` does not match `state_key`, reject."
    if event.sender != target:
        return refuse(version, "join.sender", "nobody can make another join")
    # "If the `sender` is banned, reject."
    current = membership_of(state, target)
    if current == "ban":
        return refuse(version, "join.banned", "the sender is banned")
    rule = join_rule_of(state)
    # "If the `join_rule` is `invite` or `knock` then allow if membership state is `invite` or `join`."
    if rule == "invite" or (rule == "knock" and version.knocking):
        if current in ("invite", "join"):
            return ALLOWED
        return refuse(version, "join.otherwise", "not invited")
    # "If the `join_rule` is `restricted` or `knock_restricted`:"
    if (rule == "restricted" and version.restricted_joins) or (
        rule == "knock_restricted" and version.knock_restricted
    ):
        # "If membership state is `join` or `invite`, allow."
        if current in ("invite", "join"):
            return ALLOWED
        # "If the `join_authorised_via_users_server` key in `content` is not a user with sufficient permission
        # to
        # invite other users or is not a joined member of the room, reject."
        authoriser = event.content.get("join_authorised_via_users_server")
        if not is_valid_user_id(authoriser):
            return refuse(version, "join.restricted.authoriser", "no authorising user")
        if membership_of(state, authoriser) != "join":
            return refuse(version, "join.restricted.authoriser", "the authorising user is not in the room")
        if levels.user_level(authoriser) < levels.named("invite"):
            return refuse(version, "join.restricted.authoriser", "the authorising user may not invite")
        return ALLOWED
    # "If the `join_rule` is `public`, allow."
    if rule == "public":
        return ALLOWED
    return refuse(version, "join.otherwise", "the join rule allows nobody")


def _check_invite(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    version = event.room_version
    # "If `content` has a `third_party_invite` property:"
    if "third_party_invite" in event.content:
        return check_third_party_invite(event, state)
    # "If the `sender`'s current membership state is not `join`, reject."
    if membership_of(state, event.sender) != "join":
        return refuse(version, "invite.sender", "the sender is not in the room")
    # "If *target user*'s current membership state is `join` or `ban`, reject."
    if membership_of(state, target) in ("join", "ban"):
        return refuse(version, "invite.target", "the target is in the room or banned")
    # "If the `sender`'s power level is greater than or equal to the *invite level*, allow."
    if levels.user_level(event.sender) >= levels.named("invite"):
        return ALLOWED
    return refuse(version, "invite.otherwise", "the sender's level is below the invite level")


def _check_leave(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    version = event.room_version
    sender_membership = membership_of(state, event.sender)
    # "If the `sender` matches `state_key`, allow if and only if that user's current membership state is
    # `invite`,
    # `join`, or `knock`."
    if event.sender == target:
        if sender_membership in ("invite", "join") or (sender_membership == "knock" and version.knocking):
            return ALLOWED
        return refuse(version, "leave.self", "the sender is not in the room")
    # "If the `sender`'s current membership state is not `join`, reject."
    if sender_membership != "join":
        return refuse(version, "leave.sender", "the sender is not in the room")
    # "If the *target user*'s current membership state is `ban`, and the `sender`'s power level is less than
    # the
    # *ban level*, reject."
    sender_level = levels.user_level(event.sender)
    if membership_of(state, target) == "ban" and sender_level < levels.named("ban"):
        return refuse(version, "leave.unban", "the sender's level is below the ban level")
    # "If the `sender`'s power level is greater than or equal to the *kick level*, and the *target user*'s
    # power level
    # is less than the `sender`'s power level, allow."
    if sender_level >= levels.named("kick") and levels.user_level(target) < sender_level:
        return ALLOWED
    return refuse(version, "leave.otherwise", "the sender's level does not suffice to kick the target")


def _check_ban(event: Event, target: str, state: Mapping[StateKey, Event], levels: PowerLevels) -> Verdict:
    version = event.room_version
    # "If the `sender`'s current membership state is not `join`, reject."
    if membership_of(state, event.sender) != "join":
        return refuse(version, "ban.sender", "the sender is not in the room")
    # "If the `sender`'s power level is greater than or equal to the *ban level*, and the *target user*'s
    # power level is
    # less than the `sender`'s power level, allow."
    sender_level = levels.user_level(event.sender)
    if sender_level >= levels.named("ban") and levels.user_level(target) < sender_level:
        return ALLOWED
    return refuse(version, "ban.otherwise", "the sender's level does not suffice to ban the target")


def _check_knock(event: Event, target: str, state: Mapping[StateKey, Event]) -> Verdict:
    version = event.room_version
    # "If the `join_rule` is anything other than `knock` or `knock_restricted`, reject."
    rule = join_rule_of(state)
    if not (rule == "knock" or (rule == "knock_restricted" and version.knock_restricted)):
        return refuse(version, "knock.join_rule", "the join rule does not allow knocking")
    # "If `sender` does not match `state_key`, reject."
    if event.sender != target:
        return refuse(version, "knock.sender", "nobody can knock for another")
    # "If the `sender`'s current membership is not `ban`, `invite`, or `join`, allow."
    if membership_of(state, target) not in ("ban", "invite", "join"):
        return ALLOWED
    return refuse(version, "knock.otherwise", "the sender is in the room, invited or banned")
