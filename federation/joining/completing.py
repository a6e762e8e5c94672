"""The members that send_join left out, fetched once the user is in the room.

    partial import ──► /state at our join ──► checked ──► Import, in parts ──► CommitImport(completes) ──► done
    (`joins`)          the resident first, then
                       other servers of the room

The job is the join's, and as durable: after a restart it goes on, with its failed tries counted and the next one due
when it was. Nothing ends it but the whole state, or that nobody of ours is in the room any more. Once the RoomServer
has the members it judges what waited for them, a page at a time: BUSY asks for the next.
"""

import asyncio
from collections.abc import Collection, Sequence

from arbor.log.v1 import input_pb2
from federation.clock import NowMs
from federation.joining.answer import CREATE, JoinFailed, check_members, import_id_of, parts_of
from federation.outbound.client import LARGE_MAX_BYTES, LARGE_TIMEOUT_S, FederationClient, path_of
from federation.outbound.errors import RemoteError
from federation.receipt.pdu_checks import PduChecker
from federation.rooms import LatestState, Rooms
from federation.storage import jobs as storage
from federation.storage.jobs import JoinJob
from federation.submit import Submitter, Verdict, event_message, is_accepted
from matrixlib.events import Event, parse_event
from matrixlib.identifiers import server_name_of
from matrixlib.room_versions import get_room_version
from servicekit import metrics
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.log.faultpoints import fault_point
from servicekit.logging import get_logger

log = get_logger("federation.joins")

COMMIT_TIMEOUT_S = 20.0
RETRY_S = 1.0
RETRY_MIN_MS = 1_000
RETRY_MAX_MS = 10 * 60 * 1000
# The resident, and so many others each try, another few each time.
MAX_OTHERS = 3
# States of large rooms in memory at the same time.
AT_ONCE = 2

Code = input_pb2.VerdictCode

_incomplete = metrics.gauge(
    "federation_joins_completing", "Rooms joined with partial state whose members are being fetched"
)
_tries = metrics.counter(
    "federation_join_completions_total", "Tries to complete a room joined with partial state", ["result"]
)


def event_of(job: JoinJob) -> Event:
    """The join of a job. Raises `JoinFailed` or `EventFormatError`."""
    version = get_room_version(job.room_version)
    if version is None:
        raise JoinFailed("unknown room version")
    return parse_event(job.join_event_json, version)


class _Left(Exception):
    """Nobody of ours is in the room any more."""


class Completions:
    """See the module."""

    def __init__(
        self,
        client: FederationClient,
        checker: PduChecker,
        database: Database,
        rooms: Rooms,
        submitter: Submitter,
        local_names: Sequence[str],
        now_ms: NowMs,
    ) -> None:
        self._client = client
        self._checker = checker
        self._database = database
        self._rooms = rooms
        self._submitter = submitter
        self._local_names = frozenset(local_names)
        self._now_ms = now_ms
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._group: asyncio.TaskGroup | None = None
        # job id -> set when something happened to its room, which may be that all have left
        self._jobs: dict[str, tuple[str, asyncio.Event]] = {}
        _incomplete.set_function(lambda: len(self._jobs))

    async def run(self) -> None:
        """Resume what a restart interrupted, and be the home of what is begun from now on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for job in await self._database.read(storage.load_completing):
                self.begin(job)
            await asyncio.Event().wait()

    def begin(self, job: JoinJob) -> None:
        """Complete a join that is imported with partial state, and noted as being completed."""
        if self._group is None or job.job_id in self._jobs:
            return  # `run` finds it in the database, or has found it
        changed = asyncio.Event()
        self._jobs[job.job_id] = (job.room_id, changed)
        self._group.create_task(self._contained(job, changed))

    def hear(self, room_ids: Collection[str]) -> None:
        """The servers of rooms, or our part in them, changed."""
        for room_id, changed in self._jobs.values():
            if room_id in room_ids:
                changed.set()

    async def _contained(self, job: JoinJob, changed: asyncio.Event) -> None:
        try:
            error = await self._complete(job, changed)
            await self._database.write(storage.finish_job, job.job_id, error)
            log.info("join_completed", room=job.room_id, error=error)
        finally:
            del self._jobs[job.job_id]

    async def _complete(self, job: JoinJob, changed: asyncio.Event) -> str:
        """Try until the room is whole (returns nothing), or there is no more need (returns why)."""
        attempts, next_try_ms = job.attempts, job.next_try_ms
        while True:
            is_due = await self._wait_until(next_try_ms, changed)
            try:
                latest = await self._latest(job)
                if latest.partial and not is_due:
                    continue
                causes = await self._try(job, latest, attempts)
            except _Left as left:
                return str(left)
            except MatrixError as error:
                if error.http_status == 503:
                    # The RoomServer or the log is away: the job waits for them.
                    log.info("completing_waits", room=job.room_id, reason=str(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                causes = [str(error)]
            except Exception as error:
                # One room's must not end the group, and with it the service.
                log.error("completing_failed", exc_info=error, room=job.room_id)
                causes = [f"{type(error).__name__}: {error}"]
            if not causes:
                return ""
            delay_ms = min(RETRY_MIN_MS * 2 ** min(attempts, 20), RETRY_MAX_MS)
            attempts, next_try_ms = attempts + 1, self._now_ms() + delay_ms
            await self._database.write(
                storage.note_failed_try, job.job_id, attempts, next_try_ms, "; ".join(causes)
            )

    async def _wait_until(self, at_ms: int, changed: asyncio.Event) -> bool:
        """Wait for the next try, or until something happened to the room; returns whether the try is due."""
        changed.clear()
        wait_s = (at_ms - self._now_ms()) / 1000
        if wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await changed.wait()
                    return False
            except TimeoutError:
                pass
        return True

    async def _latest(self, job: JoinJob) -> LatestState:
        """The room as it is now. Raises `_Left`, `MatrixError`."""
        latest = await self._rooms.latest(job.room_id, [CREATE])
        if latest is None or not latest.participating:
            raise _Left("left before it was complete")
        return latest

    async def _try(self, job: JoinJob, latest: LatestState, attempts: int) -> list[str]:
        """Try once; returns why it came to nothing, nothing when all is done.

        Raises:
            MatrixError: the RoomServer or the log is away.
        """
        join = event_of(job)
        if not latest.partial:
            # It is whole: by a try whose verdict was lost, or in another stay. Something may still wait there.
            await self._commit(job, join, job.job_id)
            return []
        causes = []
        for server in await self._servers(job, attempts):
            try:
                async with self._slots:
                    import_id = await self._stage(job, join, latest.state[CREATE].event_id, server)
            except (RemoteError, JoinFailed) as error:
                _tries.labels("failed").inc()
                log.info("members_not_got", room=job.room_id, server=server, reason=str(error))
                causes.append(f"{server}: {error}")
                continue
            fault_point("join.members_staged")
            verdict = await self._commit(job, join, import_id)
            if is_accepted(verdict):
                _tries.labels("done").inc()
                fault_point("join.completed")
                self._rooms.forget(job.room_id)
                return []
            causes.append(f"{server}: not taken here: {verdict.rejection.reason}")
        return causes

    async def _servers(self, job: JoinJob, attempts: int) -> list[str]:
        """The resident, then some of the others, another few each try."""
        known = await self._rooms.servers(job.room_id)
        others = sorted(name for name in known if name not in self._local_names and name != job.resident)
        start = attempts * MAX_OTHERS % len(others) if others else 0
        return [job.resident, *(others[start:] + others[:start])[:MAX_OTHERS]]

    async def _stage(self, job: JoinJob, join: Event, create_id: str, server: str) -> str:
        """Have the members from a server, checked, staged at the RoomServer; returns the import's id."""
        answer = await self._client.get(
            server,
            path_of("/_matrix/federation/v1/state/{}", job.room_id, event_id=join.event_id),
            origin=server_name_of(job.user_id),
            timeout_s=LARGE_TIMEOUT_S,
            max_bytes=LARGE_MAX_BYTES,
            ignore_backoff=True,
        )
        fault_point("join.members_got")
        room = await check_members(self._checker, join, create_id, answer)
        import_id = import_id_of(f"{job.job_id}-members", room)
        await self._rooms.import_parts(parts_of(import_id, room))
        log.info("members_got", room=job.room_id, server=server, members=len(room.state_ids))
        return import_id

    async def _commit(self, job: JoinJob, join: Event, import_id: str) -> Verdict:
        """Have the RoomServer take the members, and judge all that waited for them."""
        entry = input_pb2.InputEntry(
            commit_import=input_pb2.CommitImport(
                import_id=import_id,
                room_version=job.room_version,
                join_event=event_message(join),
                completes=True,
            )
        )
        while True:
            verdict = await self._submitter.submit(job.room_id, entry, COMMIT_TIMEOUT_S)
            if verdict.code != Code.VERDICT_CODE_BUSY:
                return verdict
