"""Leaving, knocking and inviting, where another server has to help."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbor.log.v1 import input_pb2
from federation.clock import NowMs
from federation.joining.handshake import Handshake, TemplateError, worst_of
from federation.joining.joins import Joined, Joins
from federation.joining.stripped import check_knock_state, strip_event
from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import RemoteError, RemoteRefused, client_error
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms
from federation.storage.jobs import JoinJob
from federation.submit import Submitter, event_message, is_accepted, refusal_of
from matrixlib.canonical_json import encode_canonical
from matrixlib.event_builder import build_event
from matrixlib.events import MAX_EVENT_BYTES, Event, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import RoomVersion, get_room_version
from matrixlib.signing import SigningKey
from servicekit.errors import MatrixError, not_found
from servicekit.logging import get_logger

log = get_logger("federation.memberships")

INVITE_TIMEOUT_S = 30.0
# What a signature takes up in an event besides the server's name.
LEAST_SIGNATURE = len('"":{"ed25519:":""},') + 86
MEMBERSHIPS_WE_LEAVE = ("invite", "knock")


@dataclass(frozen=True, slots=True)
class Left:
    """A leave, and whether another server took it."""

    event_id: str
    output_sequence: int
    told_remote: bool


class RemoteMemberships:
    """See the module."""

    def __init__(
        self,
        client: FederationClient,
        handshake: Handshake,
        joins: Joins,
        checker: PduChecker,
        rooms: Rooms,
        submitter: Submitter,
        keys: Mapping[str, SigningKey],
        now_ms: NowMs,
    ) -> None:
        self._client = client
        self._handshake = handshake
        self._joins = joins
        self._checker = checker
        self._rooms = rooms
        self._submitter = submitter
        self._keys = keys
        self._now_ms = now_ms

    async def inviter_of(self, user_id: str, room_id: str) -> list[str]:
        """Return the server of the invite that a local user has to a room, if there is one."""
        known = await self._outlier(user_id, room_id)
        return [server_name_of(known.sender)] if known is not None else []

    async def leave(self, user_id: str, room_id: str, content: Mapping[str, Any]) -> Left:
        """Refuse an invite, take back a knock, or call off a join that is being worked at.

        Here it ends in any case, also when nobody is in reach.

        Raises:
            MatrixError: 404, there is none of them; 503, the join is about to be done; or the leave was refused
                here.
        """
        job = await self._joins.call_off(user_id, room_id)
        known = await self._outlier(user_id, room_id)
        if job is not None:
            left = await self._leave_joined(job, content)
            await self._joins.called_off(job)
            if known is None:
                return left
        if known is None:
            raise not_found("Not invited to that room, and not knocking on it")
        servers = [server_name_of(known.sender)] if known.membership == "invite" else _servers_near(known)
        for resident in self._handshake.candidates(servers, _servers_near(known)):
            try:
                prepared = await self._handshake.make(
                    resident, "leave", room_id, user_id, content, known.room_version
                )
                await self._handshake.send(prepared)
            except (RemoteError, TemplateError) as error:
                log.info("leave_not_taken", room=room_id, server=resident, reason=str(error))
            else:
                sequence = await self._submit_outlier(prepared.event, user_id, resident, ())
                return Left(prepared.event.event_id, sequence, True)
        event = self._own_leave(known, user_id, content)
        return Left(event.event_id, await self._submit_outlier(event, user_id, "", ()), False)

    async def _leave_joined(self, job: JoinJob, content: Mapping[str, Any]) -> Left:
        """Leave where a join of ours may have been taken, though it is not done here."""
        try:
            prepared = await self._handshake.make(
                job.resident, "leave", job.room_id, job.user_id, content, get_room_version(job.room_version)
            )
            await self._handshake.send(prepared)
        except (RemoteError, TemplateError) as error:
            log.info("leave_not_taken", room=job.room_id, server=job.resident, reason=str(error))
            return Left("", 0, False)
        return Left(prepared.event.event_id, 0, True)

    async def knock(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined:
        """Knock on a room that we are not in.

        Raises:
            MatrixError: no server took the knock.
        """
        errors: list[Exception] = []
        view = await self._rooms.view(room_id)
        version = view.version if view is not None else None
        for resident in self._handshake.candidates(servers):
            try:
                prepared = await self._handshake.make(resident, "knock", room_id, user_id, content, version)
                answer = await self._handshake.send(prepared)
            except (RemoteError, TemplateError) as error:
                log.info("knock_not_taken", room=room_id, server=resident, reason=str(error))
                errors.append(error)
                continue
            given = answer.get("knock_room_state") if isinstance(answer, dict) else None
            stripped = await check_knock_state(given, self._checker, prepared.template.version, room_id)
            sequence = await self._submit_outlier(prepared.event, user_id, resident, stripped)
            return Joined(prepared.event.event_id, sequence)
        raise worst_of(errors)

    async def invite(self, event: Event, room_state: Sequence[Event]) -> Event:
        """Have the invited user's server sign an invite of ours; returns it with both signatures.

        Raises:
            MatrixError: the server refused, or is out of reach.
        """
        user_id = event.state_key or ""
        destination, origin = server_name_of(user_id), server_name_of(event.sender)
        if len(event.pdu_json) + len(destination) + LEAST_SIGNATURE > MAX_EVENT_BYTES:
            raise MatrixError("M_TOO_LARGE", 413, "With the other server's signature the invite is too large")
        body = {
            "event": event.pdu,
            "room_version": event.room_version.identifier,
            # Whole events, as the spec has it since v1.16.
            "invite_room_state": [item.pdu for item in room_state],
        }
        options: dict[str, Any] = {
            "origin": origin,
            "timeout_s": INVITE_TIMEOUT_S,
            "ignore_backoff": True,
        }
        path = path_of("/_matrix/federation/v2/invite/{}/{}", event.room_id, event.event_id)
        try:
            answer = await self._client.request(destination, "PUT", path, content=body, **options)
        except RemoteRefused as error:
            old = error.http_status in (404, 405) and error.errcode in ("", "M_UNRECOGNIZED")
            if not old or event.room_version.hashed_event_ids:
                raise client_error(error) from error
            answer = await self._invite_v1(event, room_state, destination, options)
        except RemoteError as error:
            raise client_error(error) from error
        returned = answer.get("event") if isinstance(answer, dict) else None
        signed = await self._checker.check_one(returned, event.room_version, room_id=event.room_id)
        if not isinstance(signed, Event) or signed.event_id != event.event_id:
            raise MatrixError("M_UNKNOWN", 502, "The other server did not give the invite back")
        return self._with_signature(event, signed, destination)

    async def _invite_v1(
        self, event: Event, room_state: Sequence[Event], destination: str, options: Mapping[str, Any]
    ) -> Any:
        path = path_of("/_matrix/federation/v1/invite/{}/{}", event.room_id, event.event_id)
        shown: list[dict[str, Any]] = []
        body = {**event.pdu, "unsigned": {"invite_room_state": shown}}
        # The state lies in the event here, and an event has a greatest size.
        left = MAX_EVENT_BYTES - len(encode_canonical(body))
        for item in map(strip_event, room_state):
            size = len(encode_canonical(item)) + 1
            if size <= left:
                shown.append(item)
                left -= size
        try:
            answer = await self._client.request(destination, "PUT", path, content=body, **options)
        except RemoteError as error:
            raise client_error(error) from error
        return answer[1] if isinstance(answer, list) and len(answer) == 2 else answer

    def _with_signature(self, event: Event, signed: Event, destination: str) -> Event:
        """Our own event with nothing but the other server's signatures added."""
        added = signed.pdu.get("signatures", {}).get(destination)
        if not isinstance(added, dict) or not added:
            raise MatrixError("M_UNKNOWN", 502, "The other server did not sign the invite")
        # That server's own too, which may have signed as the room's policy server.
        own = event.pdu["signatures"]
        signatures = {**own, destination: {**own.get(destination, {}), **added}}
        return parse_event(
            {**event.pdu, "signatures": signatures}, event.room_version, event_id=event.event_id
        )

    # -- inside --------------------------------------------------------------------------------------------

    async def _outlier(self, user_id: str, room_id: str) -> Event | None:
        """The event of the invite or knock that a user has to a room."""
        found = await self._rooms.memberships(room_id, [user_id], MEMBERSHIPS_WE_LEAVE)
        ids = [item.membership.event_id for item in found if item.membership.event_id]
        for stored in await self._rooms.events(ids):
            version = get_room_version(stored.room_version)
            if version is not None:
                return parse_event(
                    stored.event.pdu_json, version, event_id=stored.event.event_id, verify_size=False
                )
        return None

    def _own_leave(self, known: Event, user_id: str, content: Mapping[str, Any]) -> Event:
        """A leave that stands here only: it comes after the invite, nothing else is known."""
        origin = server_name_of(user_id)
        version: RoomVersion = known.room_version
        return build_event(
            version,
            room_id=known.room_id,
            sender=user_id,
            type="m.room.member",
            content={**content, "membership": "leave"},
            state_key=user_id,
            prev_events=[known.event_id],
            auth_event_ids=[known.event_id],
            depth=known.depth + 1,
            origin_server_ts=self._now_ms(),
            server_name=origin,
            signing_key=self._keys[origin],
            event_id=None if version.hashed_event_ids else f"${secrets.token_urlsafe(18)}:{origin}",
        )

    async def _submit_outlier(
        self, event: Event, user_id: str, origin_server: str, stripped: Sequence[bytes]
    ) -> int:
        entry = input_pb2.InputEntry(
            submit_events=input_pb2.SubmitEvents(
                origin=input_pb2.EVENT_ORIGIN_OUTLIER,
                room_version=event.room_version.identifier,
                events=[event_message(event)],
                origin_server=origin_server,
                stripped_state_json=stripped,
                outlier_membership_user_id=user_id,
            )
        )
        verdict = await self._submitter.submit(event.room_id, entry)
        if not is_accepted(verdict):
            raise refusal_of(verdict)
        return int(verdict.output_sequence)


def _servers_near(event: Event) -> list[str]:
    """Servers that the event itself names: they may be in the room."""
    return [name for name in (server_name_of(event.sender), server_name_of(event.room_id)) if name]
