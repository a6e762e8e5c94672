"""Joining, leaving, inviting, kicking, banning, knocking, forgetting (spec, "Room membership")."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection

from clientapi.accounts.sessions import Session
from clientapi.accounts.tell import Teller, room_forgotten
from clientapi.clock import Clock
from clientapi.rooms.head import Head
from clientapi.rooms.invites import RemoteInvites
from clientapi.rooms.remote import RemoteRooms
from clientapi.rooms.requests import AlreadyThere, Decide, Draft, Sent, Wish
from clientapi.rooms.send import RoomSender
from clientapi.rooms.successors import Successors
from clientapi.storage import settings, users
from clientapi.storage.invite_permission import load_who_blocks_invites
from clientapi.storage.room_tasks import is_blocked
from matrixlib.events import Event, StateKey
from matrixlib.identifiers import server_name_of
from matrixlib.power_levels import CREATE_KEY, POWER_LEVELS_KEY, PowerLevels
from matrixlib.room_versions import RoomVersion
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, forbidden, not_found
from servicekit.http import RateLimiter
from servicekit.positions import user_positions

JOIN_RULES: Final = ("m.room.join_rules", "")
GUEST_ACCESS: Final = ("m.room.guest_access", "")


class Memberships:
    """Changes memberships of local users, and of others by local users."""

    def __init__(
        self,
        config: Config,
        db: Database,
        teller: Teller,
        sender: RoomSender,
        remote: RemoteRooms,
        successors: Successors,
        clock: Clock,
    ) -> None:
        self._config = config
        self._db = db
        self._teller = teller
        self._sender = sender
        self._remote = remote
        self._successors = successors
        self._remote_joins = RateLimiter.of(config.rate_limits, "join_remote")
        self._remote_invites = RemoteInvites(sender, remote, clock)
        self._clock = clock

    # -- one's own
    # -------------------------------------------------------------------------------------------------

    async def join(
        self, session: Session, room_id: str, extra: Mapping[str, Any], via: Sequence[str] = ()
    ) -> Sent:
        """Join a room, through another server if we take no part in it.

        Args:
            extra: further content of the member event, such as `reason`.
            via: servers that may be in the room, best first.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND for a room that no server is known for, 502.
        """
        user_id = session.user_id
        member_key = ("m.room.member", user_id)
        keys = frozenset({CREATE_KEY, POWER_LEVELS_KEY, JOIN_RULES, GUEST_ACCESS, member_key})
        head, state = await self._present_for(user_id, room_id, keys)
        if head is None or not head.participating:
            return await self._join_remotely(session, room_id, extra, via)
        if session.guest and _content(state, GUEST_ACCESS).get("guest_access") != "can_join":
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not join this room")
        profile, forgotten = await self._load_joining(user_id, room_id)
        content: dict[str, Any] = {**extra, "membership": "join", **profile}
        try:
            authoriser = await self._authoriser(room_id, user_id, head.room_version, state)
        except MatrixError as error:
            others = [*via, *await self._servers_of(room_id)]
            if error.errcode != "M_UNABLE_TO_GRANT_JOIN" or not self._remote.enabled or not others:
                raise
            return await self._join_remotely(session, room_id, extra, via)
        if authoriser is not None:
            content["join_authorised_via_users_server"] = authoriser

        def decide(_version: RoomVersion, now: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            member = now.get(member_key)
            if member is not None and member.membership == "join":
                return AlreadyThere(member.event_id)
            return draft

        draft = Draft("m.room.member", content, user_id)
        sent = await self._sender.send(room_id, Wish(user_id, draft, frozenset({member_key}), decide))
        if forgotten:
            await self._db.write(settings.delete_forgotten, user_id, room_id)
        create = state.get(CREATE_KEY)
        if create is not None and "predecessor" in create.content:
            await self._successors.follow_join(user_id, room_id, create)
        return sent

    async def _join_remotely(
        self, session: Session, room_id: str, extra: Mapping[str, Any], via: Sequence[str]
    ) -> Sent:
        user_id = session.user_id
        if not self._remote.enabled:
            raise not_found("No server of this room is known")
        if session.guest:
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not join rooms of other servers")
        servers = [*via, *await self._servers_of(room_id)]
        if not servers and not await self._invited_or_knocking(user_id, room_id):
            raise not_found("No server of this room is known")
        self._remote_joins.check(user_id)
        profile, forgotten = await self._load_joining(user_id, room_id)
        sent = await self._remote.join(user_id, room_id, servers, {**extra, **profile})
        self._happened(user_id, room_id, sent)
        if forgotten:
            await self._db.write(settings.delete_forgotten, user_id, room_id)
        await self._successors.follow_join(user_id, room_id)
        return sent

    async def _load_joining(self, user_id: str, room_id: str) -> tuple[dict[str, str], bool]:
        """Return (what stands of the profile in member events, whether the room was forgotten).

        Raises:
            MatrixError: M_FORBIDDEN for a room that an administrator has blocked.
        """
        profile, forgotten, blocked = await self._db.read(_load_joining, user_id, room_id)
        if blocked:
            raise room_blocked()
        return profile, forgotten

    async def _present(
        self, room_id: str, keys: frozenset[StateKey]
    ) -> tuple[Head | None, Mapping[StateKey, Event]]:
        """Return the room as the RoomServer has it now; no head: it is not known here.

        A lane does not hear that we come to take part in a room, or no longer do.
        """
        try:
            return await self._sender.fresh_view(room_id, keys)
        except MatrixError as error:
            if error.errcode != "M_NOT_FOUND":
                raise
            return None, {}

    async def _present_for(
        self, user_id: str, room_id: str, keys: frozenset[StateKey]
    ) -> tuple[Head | None, Mapping[StateKey, Event]]:
        """As `_present`, with the user's membership among the keys, once that is known.

        Of who is not joined it is not while the room's members are still to come: then they are waited for.
        """
        head, state = await self._present(room_id, keys)
        member = state.get(("m.room.member", user_id))
        if head is None or not head.partial or (member is not None and member.membership == "join"):
            return head, state
        await self._sender.until_whole(room_id)
        return await self._present(room_id, keys)

    async def _servers_of(self, room_id: str) -> list[str]:
        """Return other servers that may be in a room that we were in, or that is called after one."""
        joined = await self._sender.queries.memberships([], room_id, kinds=["join"])
        names = {server_name_of(item.membership.user_id): None for item in joined}
        names[server_name_of(room_id)] = None
        return [name for name in names if name and not self._config.is_local(name)]

    def _happened(self, user_id: str, room_id: str, sent: Sent) -> None:
        """Something was done in a room that did not go through its lane."""
        if sent.output_sequence:
            user_positions.note(user_id, sent.output_sequence)
        self._sender.lane(room_id).forget_view()

    async def _authoriser(
        self, room_id: str, user_id: str, version: RoomVersion, state: Mapping[StateKey, Event]
    ) -> str | None:
        """Return who lets a user into a restricted room; None if nobody is needed (or nobody can)."""
        rules = _content(state, JOIN_RULES)
        kinds = {"restricted"} if version.restricted_joins else set()
        kinds |= {"knock_restricted"} if version.knock_restricted else set()
        member = state.get(("m.room.member", user_id))
        if rules.get("join_rule") not in kinds or (
            member is not None and member.membership in ("join", "invite", "ban")
        ):
            return None
        allow = rules.get("allow")
        allowed_rooms = {
            rule.get("room_id")
            for rule in (allow if isinstance(allow, list) else ())
            if isinstance(rule, dict) and rule.get("type") == "m.room_membership"
        }
        joined = await self._sender.queries.memberships([user_id], kinds=["join"])
        if not any(item.room_id in allowed_rooms for item in joined):
            raise forbidden("You are in none of the rooms whose members may join")
        levels = PowerLevels.of(version, state)
        server_name = server_name_of(user_id)
        for room in await self._sender.queries.rooms([room_id], with_local_users=True):
            able = [
                local
                for local in room.local_user_ids
                if server_name_of(local) == server_name and levels.user_level(local) >= levels.named("invite")
            ]
            if able:
                return max(able, key=lambda local: (levels.user_level(local), local))
        raise MatrixError("M_UNABLE_TO_GRANT_JOIN", 400, "Nobody here can let you into this room")

    async def leave(self, user_id: str, room_id: str, extra: Mapping[str, Any]) -> Sent:
        """Leave a room, refuse an invite, or take back a knock.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND.
        """
        member_key = ("m.room.member", user_id)
        head, present = await self._present_for(user_id, room_id, frozenset({CREATE_KEY, member_key}))
        if head is None or not head.participating:
            member = present.get(member_key)
            if await self._invited_or_knocking(user_id, room_id):
                # Unless all have left a room of ours, others are in it, who must hear of it.
                elsewhere = CREATE_KEY not in present or await self._servers_of(room_id)
                if elsewhere and self._remote.enabled:
                    sent = await self._remote.leave(user_id, room_id, extra)
                    self._happened(user_id, room_id, sent)
                    return sent
            elif self._remote.enabled and (called_off := await self._call_off_join(user_id, room_id, extra)):
                return called_off
            elif member is not None and member.membership == "leave":
                return Sent(member.event_id, 0)
            if head is None:
                raise not_found("There is no such room here")
        draft = Draft("m.room.member", {**extra, "membership": "leave"}, user_id)

        def decide(_version: RoomVersion, state: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            member = state.get(member_key)
            if member is None:
                raise forbidden("You are not in this room")
            if member.membership == "leave":
                return AlreadyThere(member.event_id)
            return draft

        return await self._sender.send(room_id, Wish(user_id, draft, frozenset({member_key}), decide))

    async def _call_off_join(self, user_id: str, room_id: str, extra: Mapping[str, Any]) -> Sent | None:
        """End a join through other servers that is not done yet; None: there is none."""
        try:
            return await self._remote.leave(user_id, room_id, extra)
        except MatrixError as error:
            if error.http_status != 404:
                raise
            return None

    async def _invited_or_knocking(self, user_id: str, room_id: str) -> bool:
        found = await self._sender.queries.memberships([user_id], room_id)
        return bool(found) and found[0].membership.membership in ("invite", "knock")

    async def knock(
        self, user_id: str, room_id: str, extra: Mapping[str, Any], via: Sequence[str] = ()
    ) -> Sent:
        """Ask to be let in, through another server if we take no part in the room.

        Raises:
            MatrixError: M_FORBIDDEN, M_NOT_FOUND, 502.
        """
        profile, _forgotten, blocked = await self._db.read(_load_joining, user_id, room_id)
        if blocked:
            raise room_blocked()
        head, _state = await self._present(room_id, frozenset({CREATE_KEY}))
        if head is None or not head.participating:
            servers = [*via, *await self._servers_of(room_id)]
            if not servers or not self._remote.enabled:
                raise not_found("No server of this room is known")
            self._remote_joins.check(user_id)
            sent = await self._remote.knock(user_id, room_id, servers, {**extra, **profile})
            self._happened(user_id, room_id, sent)
            return sent
        content = {**extra, "membership": "knock", **profile}
        return await self._change(user_id, room_id, user_id, content, None)

    async def forget(self, user_id: str, room_id: str) -> None:
        """Forget a room that one has left.

        Raises:
            MatrixError: M_UNKNOWN for a room that one is still in, M_NOT_FOUND for one that one never was in.
        """
        found = await self._sender.queries.memberships([user_id], room_id)
        if not found:
            raise not_found("You were never in this room")
        if found[0].membership.membership not in ("leave", "ban"):
            raise MatrixError("M_UNKNOWN", 400, "You must leave the room before you can forget it")
        await self._db.write(self._store_forgotten, user_id, room_id)

    def _store_forgotten(self, conn: Connection, user_id: str, room_id: str) -> None:
        if settings.store_forgotten(conn, user_id, room_id, self._clock()):
            self._teller.tell_user(conn, "user.account_data", user_id, [room_forgotten(room_id)])

    # -- others'
    # ---------------------------------------------------------------------------------------------------

    async def invite(self, user_id: str, room_id: str, target: str, extra: Mapping[str, Any]) -> Sent:
        """Invite a user; one of another server is asked for its signature first.

        Raises:
            MatrixError: M_FORBIDDEN, M_INVITE_BLOCKED; 502 if the other server cannot be reached.
        """
        self.check_invitable(target)
        profile, blocks, is_room_blocked = await self._db.read(_load_invited, target, room_id)
        if is_room_blocked:
            raise room_blocked()
        if not self._config.is_local(server_name_of(target)):
            content = {**extra, "membership": "invite"}
            await self._sender.until_whole(room_id)
            sent = await self._remote_invites.invite(user_id, room_id, target, content)
            self._happened(user_id, room_id, sent)
            return sent
        if blocks:
            raise invite_blocked(target)
        content = {**extra, "membership": "invite", **profile}

        def decide(_version: RoomVersion, member: Event | None) -> Event | None:
            if member is not None and member.membership == "invite" and member.content == content:
                return member
            return None

        return await self._change(user_id, room_id, target, content, decide)

    def check_invitable(self, target: str) -> None:
        """Check that we can invite a user at all. Raises MatrixError M_FORBIDDEN."""
        if not self._config.is_local(server_name_of(target)) and not self._remote.enabled:
            raise forbidden("Users of other servers cannot be invited")

    async def kick(self, user_id: str, room_id: str, target: str, extra: Mapping[str, Any]) -> Sent:
        """Remove somebody from a room. Raises MatrixError M_FORBIDDEN."""

        def decide(_version: RoomVersion, member: Event | None) -> None:
            if member is None or member.membership not in ("join", "invite", "knock"):
                raise forbidden("That user is not in the room")

        return await self._change(user_id, room_id, target, {**extra, "membership": "leave"}, decide)

    async def ban(self, user_id: str, room_id: str, target: str, extra: Mapping[str, Any]) -> Sent:
        """Keep somebody out of a room. Raises MatrixError M_FORBIDDEN."""
        return await self._change(user_id, room_id, target, {**extra, "membership": "ban"}, None)

    async def unban(self, user_id: str, room_id: str, target: str, extra: Mapping[str, Any]) -> Sent:
        """Let somebody come back. Raises MatrixError M_FORBIDDEN, M_BAD_STATE for who is not banned."""

        def decide(_version: RoomVersion, member: Event | None) -> None:
            if member is None or member.membership != "ban":
                raise MatrixError("M_BAD_STATE", 403, "That user is not banned")

        return await self._change(user_id, room_id, target, {**extra, "membership": "leave"}, decide)

    async def _change(
        self, user_id: str, room_id: str, target: str, content: dict[str, Any], check: Any
    ) -> Sent:
        await self._sender.until_whole(room_id)
        target_key = ("m.room.member", target)
        draft = Draft("m.room.member", content, target)
        decide: Decide | None = None
        if check is not None:

            def decide_by_member(
                version: RoomVersion, state: Mapping[StateKey, Event]
            ) -> Draft | AlreadyThere:
                same = check(version, state.get(target_key))
                return draft if same is None else AlreadyThere(same.event_id)

            decide = decide_by_member
        return await self._sender.send(room_id, Wish(user_id, draft, frozenset({target_key}), decide))


def load_member_profile(conn: Connection, user_id: str) -> dict[str, str]:
    """Return what of a local user's profile stands in member events: `displayname`, `avatar_url`."""
    fields = users.load_profiles(conn, [user_id]).get(user_id, {})
    return {name: orjson.loads(fields[name]) for name in ("displayname", "avatar_url") if name in fields}


def _load_invited(conn: Connection, user_id: str, room_id: str) -> tuple[dict[str, str], bool, bool]:
    blocks_invites = bool(load_who_blocks_invites(conn, [user_id]))
    return load_member_profile(conn, user_id), blocks_invites, is_blocked(conn, room_id)


def room_blocked() -> MatrixError:
    """Return the answer to who wants into a blocked room, or to invite somebody there."""
    return forbidden("This room has been blocked on this server")


def invite_blocked(user_id: str) -> MatrixError:
    """Return the answer to an invite of somebody who takes none."""
    return MatrixError("M_INVITE_BLOCKED", 403, f"{user_id} takes no invites")


def _load_joining(conn: Connection, user_id: str, room_id: str) -> tuple[dict[str, str], bool, bool]:
    profile = load_member_profile(conn, user_id)
    return profile, settings.is_forgotten(conn, user_id, room_id), is_blocked(conn, room_id)


def _content(state: Mapping[StateKey, Event], key: StateKey) -> Mapping[str, Any]:
    event = state.get(key)
    return {} if event is None else event.content
