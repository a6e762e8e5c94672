"""A local user joins a room of other servers.

    make_join ──► our event ──► send_join ──► checked ──► Import, in parts ──► CommitImport ──► done, or
    (one server      stored:         stored:                                                    completing
     after the       sent            importing
     other)

The work is not the caller's: who gives up waiting finds the room joined later. From the moment that the join
is on its way to the resident server it is a job, which a restart takes up where it was: a join that was sent
is sent again (the resident knows the event), an answer that is here is imported. Nothing but a refusal, or the
user's leave, ends it. The resident may leave most members out of its answer: then the room is partial once it is
committed, the user can talk in it, and `completing` goes on with the job. Of several users who join one room at
the same time, one does it after the other, and the later ones find us in the room; a user's own repeated requests
wait for the same job.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from arbor.log.v1 import input_pb2
from arbor.roomserver.v1 import query_pb2
from federation.clock import NowMs
from federation.joining.answer import JoinFailed, RoomAtJoin, check_answer, import_id_of, parts_of
from federation.joining.completing import Completions, event_of
from federation.joining.handshake import Handshake, Prepared, TemplateError, worst_of
from federation.outbound.errors import RemoteError, RemoteRefused
from federation.policy import PolicySignatures
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import Rooms
from federation.storage import jobs as storage
from federation.storage.jobs import JobSummary, JoinJob
from federation.submit import Submitter, event_message, federation_entry, is_accepted, refusal_of
from federation.turns import Turns
from matrixlib.canonical_json import CanonicalJsonError, encode_canonical, parse_json
from matrixlib.events import Event, EventFormatError
from servicekit.database import Database
from servicekit.errors import MatrixError, unavailable
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

log = get_logger("federation.joins")

# A verdict lost by a crash is asked for after that long; an entry written twice changes nothing.
COMMIT_TIMEOUT_S = 20.0
RETRY_S = 1.0
START_TIMEOUT_S = 10.0
# How often a join that was sent before a restart is sent again, each time after a longer pause.
MAX_SENDS = 6

_ANSWER_KEYS = ("state", "auth_chain", "event", "members_omitted", "servers_in_room")

ImportParts = Callable[[AsyncIterator[query_pb2.ImportRequest]], Awaitable[None]]
"""Stages a room's state at the RoomServer. Raises `MatrixError`."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Where a join stands: the event, and the OUTPUT stream sequence that tells it."""

    event_id: str
    output_sequence: int


Outcome = Joined | MatrixError


@dataclass(slots=True)
class _Running:
    """A user's join of a room that is being worked at."""

    task: "asyncio.Task[Outcome]"
    committing: bool = False
    """Past the point where it can be called off."""
    left: bool = False
    """The user left meanwhile."""


class Joins:
    """See the module. `group` is the service's: jobs outlive the call that began them."""

    def __init__(
        self,
        handshake: Handshake,
        checker: PduChecker,
        policy: PolicySignatures,
        database: Database,
        rooms: Rooms,
        submitter: Submitter,
        import_parts: ImportParts,
        completions: Completions,
        now_ms: NowMs,
    ) -> None:
        self._handshake = handshake
        self._checker = checker
        self._policy = policy
        self._database = database
        self._rooms = rooms
        self._submitter = submitter
        self._import_parts = import_parts
        self._completions = completions
        self._now_ms = now_ms
        self._turns = Turns()
        self._running: dict[tuple[str, str], _Running] = {}
        self._group: asyncio.TaskGroup | None = None
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Resume what a crash interrupted, and be the home of what is begun from now on."""
        async with asyncio.TaskGroup() as group:
            jobs = await self._database.read(storage.load_unfinished)
            # From here on there is no pause until all are under way: who asks again waits for these.
            self._group = group
            doubles = []
            for job in jobs:
                key = (job.user_id, job.room_id)
                if key in self._running:
                    doubles.append(job)
                else:
                    self._begin(key, self._resume(job))
            self._started.set()
            for job in doubles:
                await self._database.write(storage.finish_job, job.job_id, "another join got further")
            await asyncio.Event().wait()

    async def join(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined:
        """Join; the work goes on when the caller is cancelled.

        Raises:
            MatrixError: no server let the user in.
        """
        await self._wait_until_started()
        key = (user_id, room_id)
        running = self._running.get(key)
        if running is not None:
            # An earlier request of theirs, or one from before a restart. If it fails, this one has its own try.
            outcome = await asyncio.shield(running.task)
            if isinstance(outcome, Joined):
                return outcome
        running = self._running.get(key) or self._begin(key, self._join(user_id, room_id, servers, content))
        outcome = await asyncio.shield(running.task)
        if isinstance(outcome, MatrixError):
            raise outcome
        return outcome

    async def call_off(self, user_id: str, room_id: str) -> JoinJob | None:
        """End a user's join that is being worked at, since they leave; the caller tells `called_off` when done.

        Returns the job whose event a server may have taken; None: there is none.

        Raises:
            MatrixError: 503, it is about to be done; then the user can leave like anybody.
        """
        await self._wait_until_started()
        running = self._running.get((user_id, room_id))
        if running is not None:
            if running.committing:
                raise unavailable("The room is just being joined", 1000)
            running.left = True
            running.task.cancel()
            await asyncio.wait([running.task])
        return await self._database.read(storage.load_unfinished_of, user_id, room_id)

    async def called_off(self, job: JoinJob) -> None:
        """The user has left: nothing of the join is taken up any more."""
        await self._database.write(storage.finish_job, job.job_id, "left before the join was done")
        log.info("join_called_off", room=job.room_id)

    async def summaries(self, limit: int) -> list[JobSummary]:
        """Return the joins that are being worked at, then those that ended, newest first."""
        return await self._database.read(storage.load_summaries, limit)

    # -- tasks ---------------------------------------------------------------------------------------------

    async def _wait_until_started(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._started.wait()
        except TimeoutError:
            raise unavailable("Still starting", 1000) from None

    def _begin(self, key: tuple[str, str], work: Coroutine[Any, Any, Joined]) -> _Running:
        assert self._group is not None  # started
        running = _Running(self._group.create_task(self._contained(key, work)))
        self._running[key] = running
        return running

    async def _contained(self, key: tuple[str, str], work: Coroutine[Any, Any, Joined]) -> Outcome:
        # An error of one join must not end the group, and with it the service.
        try:
            return await work
        except MatrixError as error:
            return error
        except asyncio.CancelledError:
            if self._running[key].left:
                return MatrixError("M_FORBIDDEN", 403, "The room was left before it was joined")
            raise
        except Exception as error:
            log.error("join_failed", exc_info=error, room=key[1])
            return MatrixError("M_UNKNOWN", 500, "Internal error")
        finally:
            work.close()
            del self._running[key]

    # -- the steps -----------------------------------------------------------------------------------------

    async def _join(
        self, user_id: str, room_id: str, servers: Sequence[str], content: Mapping[str, Any]
    ) -> Joined:
        errors: list[Exception] = []
        async with self._turns.of(room_id):
            view = await self._rooms.view(room_id)
            version = view.version if view is not None else None
            for resident in self._handshake.candidates(servers):
                try:
                    prepared = await self._handshake.make(
                        resident, "join", room_id, user_id, content, version
                    )
                    return await self._send(prepared)
                except (RemoteError, TemplateError, JoinFailed) as error:
                    log.info("join_not_through", room=room_id, server=resident, reason=str(error))
                    errors.append(error)
        raise worst_of(errors)

    async def _send(self, prepared: Prepared) -> Joined:
        """Have one server take the join; a job from here on."""
        job = JoinJob(
            job_id=f"join-{secrets.token_hex(12)}",
            user_id=prepared.event.sender,
            room_id=prepared.event.room_id,
            room_version=prepared.template.version.identifier,
            resident=prepared.resident,
            join_event_json=prepared.event.pdu_json,
            answer_json=None,
        )
        await self._database.write(storage.store_job, job, self._now_ms())
        try:
            return await self._accept(job, await self._handshake.send(prepared))
        except (RemoteError, JoinFailed) as error:
            # Another server's turn.
            await self._database.write(storage.finish_job, job.job_id, str(error) or type(error).__name__)
            raise

    async def _accept(self, job: JoinJob, answer: Any) -> Joined:
        if not isinstance(answer, dict):
            raise JoinFailed("send_join's answer is not an object")
        fault_point("join.answered")
        answer_json = await asyncio.to_thread(_answer_json, answer)
        await self._database.write(storage.store_answer, job.job_id, answer_json)
        fault_point("join.stored")
        log.info("join_answered", room=job.room_id, through=job.resident, size_bytes=len(answer_json))
        return await self._check_and_import(job, answer)

    async def _check(self, job: JoinJob, answer: Mapping[str, Any]) -> RoomAtJoin:
        """Check the answer; one without members that is of no use is asked for once more, with them."""
        event = event_of(job)
        try:
            return await check_answer(self._checker, event, answer)
        except JoinFailed as error:
            if answer.get("members_omitted") is not True:
                raise
            log.info("partial_join_not_usable", room=job.room_id, through=job.resident, reason=str(error))
        whole = await self._handshake.send_event(job.resident, "join", event, omit_members=False)
        if not isinstance(whole, dict):
            raise JoinFailed("send_join's answer is not an object")
        answer_json = await asyncio.to_thread(_answer_json, whole)
        await self._database.write(storage.store_answer, job.job_id, answer_json)
        return await check_answer(self._checker, event, whole)

    async def _resume(self, job: JoinJob) -> Joined:
        log.info("join_resumed", room=job.room_id, through=job.resident, answered=job.answer_json is not None)
        try:
            async with self._turns.of(job.room_id):
                if job.answer_json is None:
                    return await self._accept(job, await self._send_again(job))
                answer = await asyncio.to_thread(parse_json, job.answer_json)
                return await self._check_and_import(job, answer)
        except (RemoteError, JoinFailed, EventFormatError, CanonicalJsonError) as error:
            log.warning("join_not_resumed", room=job.room_id, reason=str(error))
            await self._database.write(storage.finish_job, job.job_id, str(error) or type(error).__name__)
            raise MatrixError("M_UNKNOWN", 502, "The join could not be taken up again") from error

    async def _send_again(self, job: JoinJob) -> Any:
        """Ask once more what the resident says to a join that it may have taken already."""
        event = event_of(job)
        for attempt in range(MAX_SENDS):
            try:
                return await self._handshake.send_event(job.resident, "join", event)
            except RemoteError as error:
                refused = isinstance(error, RemoteRefused) and error.http_status < 500
                if refused or attempt == MAX_SENDS - 1:
                    raise
            await asyncio.sleep(RETRY_S * 2**attempt)
        raise AssertionError("the last try returns or raises")

    async def _check_and_import(self, job: JoinJob, answer: Mapping[str, Any]) -> Joined:
        room = await self._check(job, answer)
        try:
            state = [event for event in room.events if event.event_id in room.state_ids]
            join = await self._policy.of_join(room.join, state, room.servers or (), answer.get("event"))
        except MatrixError as error:
            await self._database.write(storage.finish_job, job.job_id, str(error))
            raise
        room = replace(room, join=join)
        while True:
            try:
                joined = await self._import(job, room)
            except MatrixError as error:
                if error.http_status != 503:
                    await self._database.write(storage.finish_job, job.job_id, str(error))
                    raise
                # The RoomServer or the log is away: the job waits for them.
                log.info("join_waits", room=job.room_id, reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                if room.servers is None:
                    await self._database.write(storage.finish_job, job.job_id)
                else:
                    await self._database.write(storage.begin_completing, job.job_id)
                    self._completions.begin(job)
                return joined

    async def _import(self, job: JoinJob, room: RoomAtJoin) -> Joined:
        self._rooms.forget(job.room_id)
        view = await self._rooms.view(job.room_id)
        if view is not None and view.participating:
            # Somebody of ours is in the room: its state is known, the join is one more event of it.
            if view.partial and not await self._is_in_room(room.join):
                raise unavailable("The room's members are not all known yet", 1000)
            entry = federation_entry(room.join, job.resident)
        else:
            import_id = import_id_of(job.job_id, room)
            await self._import_parts(parts_of(import_id, room))
            fault_point("join.staged")
            entry = input_pb2.InputEntry(
                commit_import=input_pb2.CommitImport(
                    import_id=import_id,
                    room_version=job.room_version,
                    join_event=event_message(room.join),
                    partial=room.servers is not None,
                    servers_in_room=(*room.servers, job.resident) if room.servers is not None else (),
                )
            )
        running = self._running.get((job.user_id, job.room_id))
        if running is not None:
            running.committing = True
        verdict = await self._submitter.submit(job.room_id, entry, COMMIT_TIMEOUT_S)
        if not is_accepted(verdict):
            raise refusal_of(verdict)
        fault_point("join.committed")
        self._rooms.forget(job.room_id)
        log.info(
            "joined",
            room=job.room_id,
            through=job.resident,
            state=len(room.state_ids),
            partial=room.servers is not None,
        )
        return Joined(room.join.event_id, verdict.output_sequence)

    async def _is_in_room(self, event: Event) -> bool:
        found = await self._rooms.events([event.event_id], event.room_id)
        return bool(found) and found[0].status == query_pb2.EVENT_STATUS_ACCEPTED


def _answer_json(answer: Mapping[str, Any]) -> bytes:
    kept = {key: answer[key] for key in _ANSWER_KEYS if key in answer}
    try:
        return orjson.dumps(kept)
    except TypeError:  # integers beyond 64 bits, say
        try:
            return encode_canonical(kept)
        except CanonicalJsonError as error:
            raise JoinFailed(f"send_join's answer cannot be kept: {error}") from error
