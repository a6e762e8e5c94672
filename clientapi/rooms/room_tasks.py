"""Tasks that administrators set about rooms: purging history, emptying and deleting a room.

A task is a row. Whoever of the clientapi processes claims it does it, step after step; each step can be done
twice without harm, and what was done is noted, so that a crash only delays it.

    purge_history:  one entry on INPUT, and wait until it is judged
    delete_room:    a new room for its people (if wanted) -> they leave, and join the new one -> aliases -> purge
"""

import asyncio
import secrets
from typing import Any, Final

from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from clientapi.accounts.sessions import local_session
from clientapi.clock import Clock
from clientapi.rooms.create import NewRoom, RoomCreator
from clientapi.rooms.membership import Memberships
from clientapi.rooms.requests import Draft
from clientapi.rooms.send import RoomSender
from clientapi.storage import directory, room_tasks
from clientapi.storage.room_tasks import Kind, RoomTask
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, unavailable
from servicekit.log.errors import LogError
from servicekit.log.subjects import room_input_subject
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

# Renewed while somebody works; what a process that died has claimed, another takes after so long.
LEASE_MS: Final = 20_000
RENEW_S: Final = 5.0
POLL_S: Final = 10.0
RETRY_MAX_MS: Final = 300_000
MAX_ATTEMPTS: Final = 20
JUDGED_TIMEOUT_S: Final = 30.0
MEMBERSHIPS: Final = ("join", "invite", "knock")
DEFAULT_NAME: Final = "Content Violation Notification"
DEFAULT_MESSAGE: Final = (
    "Sharing illegal content on this server is not permitted and rooms in violation will be blocked."
)


class RoomTasks:
    """See the module."""

    def __init__(
        self,
        config: Config,
        db: Database,
        sender: RoomSender,
        memberships: Memberships,
        creator: RoomCreator,
        clock: Clock,
    ) -> None:
        self._config = config
        self._db = db
        self._sender = sender
        self._memberships = memberships
        self._creator = creator
        self._clock = clock
        self._wake = asyncio.Event()
        self._ended: dict[str, asyncio.Event] = {}

    async def begin(
        self, kind: Kind, room_id: str, request: dict[str, Any], *, block_by: str | None = None
    ) -> str:
        """Set a task and return its id.

        Args:
            request: see `_purge_history` and `_delete_room`.
            block_by: the administrator who also blocks the room.
        """
        task_id = secrets.token_urlsafe(12)

        def store(conn: Connection) -> None:
            if block_by is not None:
                room_tasks.store_blocked(conn, room_id, block_by, self._clock())
            room_tasks.store_task(conn, task_id, kind, room_id, request, self._clock())

        await self._db.write(store)
        self._wake.set()
        return task_id

    async def wait(self, task_id: str) -> RoomTask:
        """Wait until a task has ended, and return it."""
        while True:
            task = await self._db.read(room_tasks.load_task, task_id)
            if task is None or task.status != "active":
                break
            ended = self._ended.setdefault(task_id, asyncio.Event())
            try:
                # Another process may be doing it, of which nothing is heard.
                async with asyncio.timeout(1.0):
                    await ended.wait()
            except TimeoutError:
                pass
        self._ended.pop(task_id, None)
        if task is None:
            raise MatrixError("M_UNKNOWN", 500, "The task is gone")
        return task

    async def run(self) -> None:
        """Work, for ever."""
        while True:
            self._wake.clear()
            while (task := await self._db.write(room_tasks.claim_task, self._clock(), LEASE_MS)) is not None:
                await self._do(task)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass  # retries that are due, and what other processes left

    async def _do(self, task: RoomTask) -> None:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._renew(task.task_id))
            try:
                await self._work(task)
            finally:
                renewing.cancel()

    async def _renew(self, task_id: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self._db.write(room_tasks.postpone_task, task_id, self._clock() + LEASE_MS)

    async def _work(self, task: RoomTask) -> None:
        result = dict(task.result)
        try:
            if task.kind == "purge_history":
                await self._purge_history(task)
            else:
                await self._delete_room(task, result)
        except MatrixError as error:
            if (error.http_status >= 500 or error.http_status == 429) and task.attempts < MAX_ATTEMPTS:
                pause_ms = min(1000 * 2 ** min(task.attempts, 10), RETRY_MAX_MS)
                log.info("room_task_waits", room_id=task.room_id, kind=task.kind, error=str(error))
                await self._db.write(room_tasks.postpone_task, task.task_id, self._clock() + pause_ms)
                return
            log.warning("room_task_failed", room_id=task.room_id, kind=task.kind, error=str(error))
            await self._db.write(
                room_tasks.store_progress, task.task_id, result, "failed", f"{error.errcode}: {error.message}"
            )
        else:
            log.info("room_task_done", room_id=task.room_id, kind=task.kind)
            await self._db.write(room_tasks.store_progress, task.task_id, result, "complete")
        ended = self._ended.get(task.task_id)
        if ended is not None:
            ended.set()

    async def _purge_history(self, task: RoomTask) -> None:
        """Request: `before_event_id`, `delete_local_events`."""
        purge = input_pb2.PurgeRoom(
            before_event_id=task.request["before_event_id"],
            delete_local_events=task.request["delete_local_events"],
        )
        await self._sender.until_whole(task.room_id)  # refused before
        await self._write(task.room_id, purge)

    async def _delete_room(self, task: RoomTask, result: dict[str, Any]) -> None:
        """Request: `new_room_user_id` or None, `room_name`, `message`, `purge`, `force_purge`."""
        request, room_id = task.request, task.room_id
        result.setdefault("kicked_users", [])
        result.setdefault("failed_to_kick_users", [])
        result.setdefault("local_aliases", [])
        result.setdefault("new_room_id", None)
        if request["new_room_user_id"] is not None and result["new_room_id"] is None:
            result["new_room_id"] = await self._make_new_room(request)
            await self._db.write(room_tasks.store_progress, task.task_id, result)
        await self._empty(room_id, result)
        moved = await self._db.write(_move_or_drop_aliases, room_id, result["new_room_id"])
        result["local_aliases"] = sorted({*result["local_aliases"], *moved})
        await self._db.write(room_tasks.store_progress, task.task_id, result)
        if not request["purge"]:
            return
        if result["failed_to_kick_users"] and not request["force_purge"]:
            raise MatrixError(
                "M_UNKNOWN", 400, "Some users could not be made to leave; force_purge purges anyway"
            )
        await self._write(room_id, input_pb2.PurgeRoom())

    async def _make_new_room(self, request: dict[str, Any]) -> str:
        user_id: str = request["new_room_user_id"]
        room = NewRoom(
            creator=user_id,
            room_version=self._creator.room_version(None),
            preset="public_chat",
            name=request["room_name"] or DEFAULT_NAME,
            # Its people are to read.
            power_level_override={"users_default": -10},
        )
        room_id = await self._creator.create(room)
        content = {"msgtype": "m.text", "body": request["message"] or DEFAULT_MESSAGE}
        await self._sender.send_draft(room_id, user_id, Draft("m.room.message", content))
        return room_id

    async def _empty(self, room_id: str, result: dict[str, Any]) -> None:
        found = await self._sender.queries.memberships([], room_id, MEMBERSHIPS)
        failed = []
        for item in found:
            user_id = item.membership.user_id
            if not self._config.is_local(user_id.partition(":")[2]):
                continue
            try:
                await self._memberships.leave(user_id, room_id, {})
            except MatrixError as error:
                # 502 is another server's doing: a policy server that is away may be so for good.
                if error.http_status >= 500 and error.http_status != 502:
                    raise
                log.info("user_stays_in_room", room_id=room_id, user_id=user_id, error=str(error))
                failed.append(user_id)
                continue
            if user_id not in result["kicked_users"]:
                result["kicked_users"].append(user_id)
            new_room_id = result["new_room_id"]
            if new_room_id is not None and item.membership.membership == "join":
                await self._bring_over(user_id, new_room_id)
        result["failed_to_kick_users"] = failed

    async def _bring_over(self, user_id: str, room_id: str) -> None:
        try:
            await self._memberships.join(local_session(user_id), room_id, {})
        except MatrixError as error:
            log.info("user_not_brought_over", room_id=room_id, user_id=user_id, error=str(error))

    async def _write(self, room_id: str, purge: input_pb2.PurgeRoom) -> None:
        """Write a purge to INPUT and wait until it was judged. Raises MatrixError 503."""
        entry = input_pb2.InputEntry(
            request_id=secrets.token_hex(8), created_ms=self._clock(), purge_room=purge
        )
        message = input_pb2.InputMessage(room_id=room_id, entries=[entry])
        connection = self._sender.writer.connection
        try:
            sequence = await connection.publish(
                room_input_subject(room_id, connection.partitions), message.SerializeToString()
            )
        except LogError as error:
            raise unavailable() from error
        await self._sender.queries.outcome(room_id, None, "", sequence, JUDGED_TIMEOUT_S)
        self._sender.lane(room_id).forget_view()


def _move_or_drop_aliases(conn: Connection, room_id: str, new_room_id: str | None) -> list[str]:
    """Let a room's aliases point to another, or to nothing; it stands in the directory no more."""
    names = [row.alias for row in directory.load_aliases(conn, [], [room_id])]
    if new_room_id is not None:
        directory.move_aliases(conn, room_id, new_room_id, names)
    else:
        directory.delete_aliases_of(conn, room_id)
    directory.delete_published(conn, room_id)
    return names
