"""Making rooms: every event of createRoom as one INPUT entry, all or nothing (client-server API, "Creation").

The events are checked one after the other against the state that those before them make, as the RoomServer
will do it; the first offender's error is the answer, and nothing of the room remains, its alias included.
"""

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from clientapi.clock import Clock
from clientapi.rooms.aliases import Aliases
from clientapi.rooms.building import as_event
from clientapi.rooms.head import Head
from clientapi.rooms.input_writer import Unsettled
from clientapi.rooms.membership import Memberships, invite_blocked, load_member_profile
from clientapi.rooms.requests import Draft
from clientapi.rooms.send import RoomSender
from clientapi.rooms.third_party_invites import AddressInvite, ThirdPartyInvites
from clientapi.rooms.verdicts import error_of_rejection
from clientapi.storage import directory
from clientapi.storage.invite_permission import load_who_blocks_invites
from matrixlib.event_auth import Refused, auth_types_for_event, check_event_auth
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from matrixlib.policy_servers import POLICY_KEY
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY
from matrixlib.room_versions import RoomVersion, get_room_version
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, unavailable
from servicekit.logging import get_logger
from servicekit.positions import user_positions

log = get_logger("clientapi.rooms")

CREATE_TIMEOUT_S: Final = 15.0
MAX_ROOM_BYTES: Final = 900_000
MAX_EVENTS: Final = 4000

# preset -> (join rule, history visibility, guest access)
PRESETS: Final = {
    "private_chat": ("invite", "shared", "can_join"),
    "trusted_private_chat": ("invite", "shared", "can_join"),
    "public_chat": ("public", "shared", "forbidden"),
}


@dataclass(frozen=True, slots=True)
class NewRoom:
    """What a room is to be made of; ids are checked, contents are not."""

    creator: str
    room_version: RoomVersion
    preset: str
    public: bool = False
    alias: str | None = None
    name: str | None = None
    topic: str | None = None
    invitees: tuple[str, ...] = ()
    third_party_invitees: tuple[AddressInvite, ...] = ()
    creation_content: Mapping[str, Any] = field(default_factory=dict)
    initial_state: tuple[Draft, ...] = ()
    is_direct: bool = False
    power_level_override: Mapping[str, Any] = field(default_factory=dict)


class _Chain:
    """The new room's events so far, and the state they make."""

    def __init__(self, sender: RoomSender, room: NewRoom) -> None:
        self._builder = sender.builder
        self._room = room
        self._version = room.room_version
        self.room_id: str | None = None
        self.events: list[Event] = []
        self.state: dict[StateKey, Event] = {}
        if not self._version.room_id_is_create_hash:
            self.room_id = f"!{new_opaque_id()}:{server_name_of(room.creator)}"

    def add(self, draft: Draft) -> None:
        """Check an event, build it and add it. Raises MatrixError."""
        version, sender = self._version, self._room.creator
        keys = auth_types_for_event(version, draft.type, sender, draft.state_key, draft.content)
        auth_state = {key: self.state[key] for key in sorted(keys) if key in self.state}
        last = self.events[-1] if self.events else None
        if draft.type == "m.room.create" and last is not None:
            raise _invalid("A room has one create event")
        if last is not None:
            proposal = as_event(version, self.room_id or "", sender, draft, (last.event_id,))
            checked = check_event_auth(proposal, {**auth_state, CREATE_KEY: self.state[CREATE_KEY]})
            if isinstance(checked, Refused):
                raise _invalid(f"{draft.type}: {checked.reason}")
        event = self._builder.build(
            version,
            self.room_id,
            sender,
            draft,
            [] if last is None else [last.event_id],
            auth_state.values(),
            0 if last is None else last.depth,
        )
        if last is None:
            checked = check_event_auth(event, {})
            if isinstance(checked, Refused):
                raise _invalid(f"{draft.type}: {checked.reason}")
            self.room_id = event.room_id
        self.events.append(event)
        if event.state_key is not None:
            self.state[event.key] = event


class RoomCreator:
    """Makes rooms."""

    def __init__(
        self,
        config: Config,
        db: Database,
        sender: RoomSender,
        memberships: Memberships,
        third_party_invites: ThirdPartyInvites,
        aliases: Aliases,
        clock: Clock,
    ) -> None:
        self._config = config
        self._db = db
        self._sender = sender
        self._memberships = memberships
        self._third_party_invites = third_party_invites
        self._aliases = aliases
        self._clock = clock

    def room_version(self, wanted: str | None) -> RoomVersion:
        """Return the version to make a room in. Raises MatrixError M_UNSUPPORTED_ROOM_VERSION."""
        version = get_room_version(wanted if wanted is not None else self._config.rooms.default_version)
        if version is None:
            raise MatrixError("M_UNSUPPORTED_ROOM_VERSION", 400, "This room version is not known here")
        return version

    async def create(self, room: NewRoom) -> str:
        """Make a room and return its id.

        Raises:
            MatrixError: M_INVALID_ROOM_STATE where an event is not allowed, M_BAD_JSON, M_TOO_LARGE,
            M_ROOM_IN_USE,
                M_FORBIDDEN, M_INVITE_BLOCKED, or 503.
        """
        self._third_party_invites.check_possible(room.third_party_invitees)
        for invitee in room.invitees:
            self._memberships.check_invitable(invitee)
        elsewhere = [user for user in room.invitees if not self._config.is_local(server_name_of(user))]
        profiles, blocking = await self._db.read(_load_people, room.creator, room.invitees)
        for invitee in room.invitees:
            if invitee in blocking:
                raise invite_blocked(invitee)
        chain = _Chain(self._sender, room)
        for draft in room_drafts(room, profiles):
            if draft.type == "m.room.member" and draft.state_key in elsewhere:
                continue  # signed by their servers first, which takes a room that stands
            chain.add(draft)
            if len(chain.events) > MAX_EVENTS:
                raise MatrixError("M_TOO_LARGE", 413, f"A new room has at most {MAX_EVENTS} events")
        if sum(len(event.pdu_json) for event in chain.events) > MAX_ROOM_BYTES:
            raise MatrixError("M_TOO_LARGE", 413, "The new room's events are too large together")
        room_id = chain.room_id
        assert room_id is not None
        if room.alias is not None:
            await self._aliases.reserve(room.alias, room_id, room.creator)
        try:
            sequence = await self._write(room_id, chain)
        except BaseException as error:
            lost = isinstance(error, MatrixError) and error.http_status == 503
            if room.alias is not None and not lost:
                await self._aliases.give_back(room.alias, room_id)
            raise
        if room.public:
            await self._db.write(directory.store_published, room_id, room.creator, self._clock())
        user_positions.note(room.creator, sequence)
        last = chain.events[-1]
        head = Head(room.room_version, (last.event_id,), last.depth, sequence)
        head.learn(chain.state, {*chain.state, POLICY_KEY})
        self._sender.lane(room_id).begin(head)
        extra = {"is_direct": True} if room.is_direct else {}
        for invitee in elsewhere:
            try:
                await self._memberships.invite(room.creator, room_id, invitee, extra)
            except MatrixError as error:
                # The room is made; that one could not be told of it does not undo that.
                log.info("invite_not_sent", room_id=room_id, user_id=invitee, error=str(error))
        for wanted in room.third_party_invitees:
            try:
                await self._third_party_invites.invite(room.creator, room_id, wanted, extra)
            except MatrixError as error:
                log.info("third_party_invite_not_sent", room_id=room_id, error=str(error))
        return room_id

    async def _write(self, room_id: str, chain: _Chain) -> int:
        outcome = await self._sender.writer.write_alone(
            room_id, chain.events, self._clock(), CREATE_TIMEOUT_S
        )
        if isinstance(outcome, Unsettled):
            raise unavailable("It is not known whether the room was made; try again")
        match outcome.code:
            case input_pb2.VERDICT_CODE_ACCEPTED | input_pb2.VERDICT_CODE_DUPLICATE:
                return outcome.output_sequence
            case input_pb2.VERDICT_CODE_REJECTED | input_pb2.VERDICT_CODE_SOFT_FAILED:
                raise error_of_rejection(outcome.rejection)
            case input_pb2.VERDICT_CODE_BUSY:
                raise unavailable("The server is busy", max(outcome.retry_after_ms, 1))
            case _:
                raise unavailable()


def room_drafts(room: NewRoom, profiles: Mapping[str, Mapping[str, str]]) -> list[Draft]:
    """Return the events of a new room, in the specification's order."""
    version = room.room_version
    initial = {(draft.type, draft.state_key): draft for draft in room.initial_state}
    drafts = [Draft("m.room.create", _creation_content(room), "")]
    drafts.append(
        Draft("m.room.member", {"membership": "join", **profiles.get(room.creator, {})}, room.creator)
    )
    given_levels = initial.pop(POWER_LEVELS_KEY, None)
    levels = dict(given_levels.content) if given_levels is not None else _power_levels(room, version)
    drafts.append(Draft("m.room.power_levels", {**levels, **room.power_level_override}, ""))
    if room.alias is not None:
        initial.pop(("m.room.canonical_alias", ""), None)
        drafts.append(Draft("m.room.canonical_alias", {"alias": room.alias}, ""))
    join_rule, history_visibility, guest_access = PRESETS[room.preset]
    for type_, preset_content in (
        ("m.room.join_rules", {"join_rule": join_rule}),
        ("m.room.history_visibility", {"history_visibility": history_visibility}),
        ("m.room.guest_access", {"guest_access": guest_access}),
    ):
        if (type_, "") not in initial:
            drafts.append(Draft(type_, preset_content, ""))
    if room.name is not None:
        initial.pop(("m.room.name", ""), None)
    if room.topic is not None:
        initial.pop(("m.room.topic", ""), None)
    drafts.extend(initial.values())
    if room.name is not None:
        drafts.append(Draft("m.room.name", {"name": room.name}, ""))
    if room.topic is not None:
        blocks = {"m.text": [{"body": room.topic}]}
        drafts.append(Draft("m.room.topic", {"topic": room.topic, "m.topic": blocks}, ""))
    for invitee in room.invitees:
        content: dict[str, Any] = {"membership": "invite", **profiles.get(invitee, {})}
        if room.is_direct:
            content["is_direct"] = True
        drafts.append(Draft("m.room.member", content, invitee))
    return drafts


def _creation_content(room: NewRoom) -> dict[str, Any]:
    version = room.room_version
    content = {key: value for key, value in room.creation_content.items() if key != "creator"}
    content["room_version"] = version.identifier
    if version.creator_in_content:
        content["creator"] = room.creator
    if version.privileged_creators and room.preset == "trusted_private_chat":
        given = content.get("additional_creators", [])
        if not isinstance(given, list):
            raise bad_json("additional_creators is not a list")
        others = [user for user in room.invitees if user not in given and user != room.creator]
        content["additional_creators"] = [*given, *others]
    return content


def _power_levels(room: NewRoom, version: RoomVersion) -> dict[str, Any]:
    users: dict[str, int] = {}
    if not version.privileged_creators:
        users[room.creator] = 100
        if room.preset == "trusted_private_chat":
            users.update(dict.fromkeys(room.invitees, 100))
    return {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.canonical_alias": 50,
            "m.room.avatar": 50,
            # Only creators, who stand above every number, may move such a room.
            "m.room.tombstone": 150 if version.privileged_creators else 100,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 50 if room.preset == "public_chat" else 0,
    }


def _load_people(
    conn: Connection, creator: str, invitees: Sequence[str]
) -> tuple[dict[str, dict[str, str]], set[str]]:
    profiles = {user_id: load_member_profile(conn, user_id) for user_id in (creator, *invitees)}
    return profiles, load_who_blocks_invites(conn, list(invitees)) if invitees else set()


def _invalid(reason: str) -> MatrixError:
    return MatrixError("M_INVALID_ROOM_STATE", 400, f"The room cannot be made: {reason}")


def new_opaque_id() -> str:
    """Return 18 random letters."""
    return "".join(secrets.choice(string.ascii_letters) for _ in range(18))
