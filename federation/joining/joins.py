"""A local user joins a room of other servers.

    make_join ──► our event ──► send_join ──► checked ──► stored ──► Import, in parts ──► CommitImport
    (one server after the other)                          job: from here on a restart resumes

The work is not the caller's: who gives up waiting finds the room joined later. Of several users who join one
room at the same time, one does it after the other, and the later ones find us in the room.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.joining.handshake import Handshake, Prepared, TemplateError, worst_of
from federation.outbound.errors import RemoteError
from federation.receipt.ordering import with_whole_auth
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms
from federation.storage import jobs as storage
from federation.storage.jobs import JoinJob
from federation.submit import Submitter, event_message, federation_entry, is_accepted, refusal_of
from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.event_auth import Refused, check_event_auth
from matrixlib.events import Event, EventFormatError, StateKey, parse_event
from matrixlib.room_versions import RoomVersion, get_room_version
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("federation.joins")

IMPORT_PART_BYTES = 1024 * 1024
COMMIT_TIMEOUT_S = 120.0
MAX_STATE_EVENTS = 500_000


ImportParts = Callable[[AsyncIterator[query_pb2.ImportRequest]], Awaitable[None]]
"""Stages a room's state at the RoomServer. Raises `MatrixError`."""


class JoinFailed(Exception):
    """What the resident server gave cannot be joined with."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Where a join stands: the event, and the OUTPUT stream sequence that tells it."""

    event_id: str
    output_sequence: int


@dataclass(frozen=True, slots=True)
class RoomAtJoin:
    """What send_join answered, checked: the join as signed by all, the state before it, its auth chain."""

    join: Event
    state: tuple[Event, ...]
    auth_chain: tuple[Event, ...]


class Joins:
    """See the module. `group` is the service's: jobs outlive the call that began them."""

    def __init__(
        self,
        handshake: Handshake,
        checker: PduChecker,
        database: Database,
        rooms: Rooms,
        submitter: Submitter,
        import_parts: ImportParts,
        now_ms: NowMs,
    ) -> None:
        self._handshake = handshake
        self._checker = checker
        self._database = database
        self._rooms = rooms
        self._submitter = submitter
        self._import_parts = import_parts
        self._now_ms = now_ms
        self._locks: dict[str, asyncio.Lock] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Resume what a crash interrupted, and be the home of what is begun from now on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for job in await self._database.read(storage.load_unfinished):
                group.create_task(self._resume(job))
            await asyncio.Event().wait()

    async def join(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined:
        """Join; the work goes on when the caller is cancelled.

        Raises:
            MatrixError: no server let the user in.
        """
        if self._group is None:
            raise MatrixError("M_UNKNOWN", 503, "Still starting", 1000)
        task = self._group.create_task(self._contained(user_id, room_id, servers, content))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, MatrixError):
            raise outcome
        return outcome

    async def _contained(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined | MatrixError:
        # An error of one join must not end the group, and with it the service.
        try:
            return await self._join(user_id, room_id, servers, content)
        except MatrixError as error:
            return error
        except Exception as error:
            log.error("join_failed", exc_info=error, room=room_id)
            return MatrixError("M_UNKNOWN", 500, "Internal error")

    async def _join(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined:
        errors: list[Exception] = []
        lock = self._locks.setdefault(room_id, asyncio.Lock())
        try:
            async with lock:
                for resident in self._handshake.candidates(servers):
                    try:
                        prepared = await self._handshake.make(resident, "join", room_id, user_id, content)
                        answer = await self._handshake.send(prepared)
                        return await self._accept(prepared, answer)
                    except (RemoteError, TemplateError, JoinFailed) as error:
                        log.info("join_not_through", room=room_id, server=resident, reason=str(error))
                        errors.append(error)
        finally:
            if not lock.locked():
                self._locks.pop(room_id, None)
        raise worst_of(errors)

    async def _accept(self, prepared: Prepared, answer: Any) -> Joined:
        if not isinstance(answer, dict):
            raise JoinFailed("send_join's answer is not an object")
        job = JoinJob(
            job_id=f"join-{secrets.token_hex(12)}",
            user_id=prepared.event.sender,
            room_id=prepared.event.room_id,
            room_version=prepared.template.version.identifier,
            resident=prepared.resident,
            join_event_json=prepared.event.pdu_json,
            answer_json=await asyncio.to_thread(_answer_json, answer),
        )
        # Checked before it is stored: what cannot be used is another server's turn, not a job.
        room = await self.check_answer(prepared.event, answer)
        await self._database.write(storage.store_job, job, self._now_ms())
        return await self._import(job, room)

    async def _resume(self, job: JoinJob) -> None:
        version = get_room_version(job.room_version)
        if version is None:
            await self._database.write(storage.finish_job, job.job_id, "unknown room version")
            return
        while True:
            try:
                event = parse_event(job.join_event_json, version)
                answer = await asyncio.to_thread(parse_json, job.answer_json)
                room = await self.check_answer(event, answer)
                await self._import(job, room)
            except MatrixError as error:
                if error.http_status != 503:
                    log.warning("join_not_resumed", room=job.room_id, reason=str(error))
                    return
                # The RoomServer or the log is away: the job waits for them.
                await asyncio.sleep(2.0)
            except (JoinFailed, EventFormatError, CanonicalJsonError) as error:
                await self._database.write(storage.finish_job, job.job_id, str(error))
                return
            else:
                log.info("join_resumed", room=job.room_id)
                return

    # -- checking ------------------------------------------------------------------------------------------

    async def check_answer(self, join: Event, answer: Mapping[str, Any]) -> RoomAtJoin:
        """Check send_join's answer: every event like any other that comes in, and the join against the state.

        Raises:
            JoinFailed: the room cannot be joined with it.
        """
        version = join.room_version
        state_pdus, chain_pdus = answer.get("state"), answer.get("auth_chain")
        if not isinstance(state_pdus, list) or not isinstance(chain_pdus, list):
            raise JoinFailed("state and auth_chain are not arrays")
        if len(state_pdus) + len(chain_pdus) > MAX_STATE_EVENTS:
            raise JoinFailed("the room's state is too large")
        if answer.get("members_omitted") is True:
            raise JoinFailed("members were left out, though we did not ask for that")
        join = await self._signed_join(join, answer.get("event"))
        state = _distinct(await self._checker.check(state_pdus, version, room_id=join.room_id))
        chain = _distinct(await self._checker.check(chain_pdus, version, room_id=join.room_id))
        by_key: dict[StateKey, Event] = {}
        for event in state.values():
            if not event.is_state or event.key in by_key:
                raise JoinFailed("the state holds two events under one key, or no state event")
            by_key[event.key] = event
        create = by_key.get(("m.room.create", ""))
        if create is None:
            raise JoinFailed("the state has no create event")
        _check_create(create, version)
        # Each event's auth events must be there, or nothing could ever be judged by it.
        known = {**chain, **state}
        complete = with_whole_auth(known)
        if create.event_id not in complete:
            raise JoinFailed("the create event cannot stand")
        by_key = {key: event for key, event in by_key.items() if event.event_id in complete}
        verdict = check_event_auth(join, by_key)
        if isinstance(verdict, Refused):
            raise JoinFailed(
                f"the join is not allowed by the state given: rule {verdict.rule}, {verdict.reason}"
            )
        return RoomAtJoin(
            join,
            tuple(by_key.values()),
            tuple(event for event in complete.values() if event.event_id not in state),
        )

    async def _signed_join(self, join: Event, returned: Any) -> Event:
        """The join with the resident's signature, where it had to sign; else our own."""
        if "join_authorised_via_users_server" not in join.content:
            return join
        checked = await self._checker.check_one(returned, join.room_version, room_id=join.room_id)
        if not isinstance(checked, Event):
            raise JoinFailed(f"the join came back unusable: {checked.reason}")
        if checked.event_id != join.event_id or checked.content != join.content:
            raise JoinFailed("the join came back changed")
        return checked

    # -- importing -----------------------------------------------------------------------------------------

    async def _import(self, job: JoinJob, room: RoomAtJoin) -> Joined:
        try:
            joined = await self._import_state(job, room)
        except MatrixError as error:
            if error.http_status != 503:
                await self._database.write(storage.finish_job, job.job_id, str(error))
            raise
        await self._database.write(storage.finish_job, job.job_id)
        return joined

    async def _import_state(self, job: JoinJob, room: RoomAtJoin) -> Joined:
        view = await self._rooms.view(job.room_id)
        if view is not None and view.participating:
            # Somebody of ours is in the room: its state is known, the join is one more event of it.
            entry = federation_entry(room.join, job.resident)
        else:
            await self._import_parts(_parts(job, room))
            entry = input_pb2.InputEntry(
                commit_import=input_pb2.CommitImport(
                    import_id=job.job_id,
                    room_version=job.room_version,
                    join_event=event_message(room.join),
                )
            )
        verdict = await self._submitter.submit(job.room_id, entry, COMMIT_TIMEOUT_S)
        if not is_accepted(verdict):
            raise refusal_of(verdict)
        self._rooms.forget(job.room_id)
        log.info("joined", room=job.room_id, through=job.resident, state=len(room.state))
        return Joined(room.join.event_id, verdict.output_sequence)


def _answer_json(answer: Mapping[str, Any]) -> bytes:
    kept = {key: answer[key] for key in ("state", "auth_chain", "event", "members_omitted") if key in answer}
    try:
        return encode_canonical(kept)
    except CanonicalJsonError as error:
        raise JoinFailed(f"send_join's answer cannot be kept: {error}") from error


def _distinct(checked: Sequence[Any]) -> dict[str, Event]:
    return {event.event_id: event for event in checked if isinstance(event, Event)}


def _check_create(create: Event, version: RoomVersion) -> None:
    named = create.content.get("room_version", "1")
    if named != version.identifier:
        raise JoinFailed("the room is of another version than make_join said")


async def _parts(job: JoinJob, room: RoomAtJoin) -> AsyncIterator[query_pb2.ImportRequest]:
    number = 0
    for events, is_state in ((room.auth_chain, False), (room.state, True)):
        for chunk in _by_size([event_message(event) for event in events]):
            number += 1
            yield query_pb2.ImportRequest(
                import_id=job.job_id,
                room_id=job.room_id,
                room_version=job.room_version,
                state=chunk if is_state else (),
                auth_chain=() if is_state else chunk,
                part=number,
            )


def _by_size(messages: Sequence[common_pb2.Event]) -> Iterator[list[common_pb2.Event]]:
    chunk: list[common_pb2.Event] = []
    size = 0
    for message in messages:
        chunk.append(message)
        size += len(message.pdu_json) + 100
        if size >= IMPORT_PART_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
