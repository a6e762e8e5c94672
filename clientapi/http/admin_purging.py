"""The part of the Synapse-compatible admin API that takes things away: history before a point, whole rooms."""

from typing import Any, Final

import msgspec

from clientapi.http.admin_parameters import local_user
from clientapi.http.edge import Edge, check_event_id, convert, room_id_of
from clientapi.rooms.parts import Rooms
from clientapi.storage import room_tasks, users
from clientapi.storage.room_tasks import RoomTask
from servicekit.errors import MatrixError, bad_json, invalid_param, not_found
from servicekit.http import Request, Response, Router, json_response

_ADMIN: Final = "/_synapse/admin"
MAX_MESSAGE_CHARS: Final = 10_000
MAX_NAME_CHARS: Final = 255


class PurgeBody(msgspec.Struct):
    """`POST /purge_history/{roomId}[/{eventId}]`."""

    delete_local_events: bool = False
    purge_up_to_event_id: str | None = None
    purge_up_to_ts: int | None = None


class DeleteBody(msgspec.Struct):
    """`DELETE /rooms/{roomId}`."""

    new_room_user_id: str | None = None
    room_name: str | None = None
    message: str | None = None
    block: bool = False
    purge: bool = True
    force_purge: bool = False


class AdminPurgeEndpoints:
    """`/purge_history`, `/purge_history_status`, `DELETE /rooms/{roomId}`, `/rooms/…/delete_status`."""

    def __init__(self, edge: Edge, rooms: Rooms) -> None:
        self._edge = edge
        self._tasks = rooms.tasks
        self._db = rooms.db
        self._queries = rooms.sender.queries

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        purge = _ADMIN + "/v1/purge_history/{room_id}"
        router.add("POST", purge, self.purge_history)
        router.add("POST", purge + "/{event_id}", self.purge_history)
        router.add("GET", _ADMIN + "/v1/purge_history_status/{purge_id}", self.get_purge_status)
        router.add("DELETE", _ADMIN + "/v1/rooms/{room_id}", self.delete_and_wait)
        router.add("DELETE", _ADMIN + "/v2/rooms/{room_id}", self.delete)
        router.add("GET", _ADMIN + "/v2/rooms/{room_id}/delete_status", self.list_delete_status)
        router.add("GET", _ADMIN + "/v2/rooms/delete_status/{delete_id}", self.get_delete_status)

    # -- history
    # ---------------------------------------------------------------------------------------------------

    async def purge_history(self, request: Request) -> Response:
        """Forget a room's messages before an event or a time; its state stays."""
        await self._edge.authenticate_admin(request)
        room_id = room_id_of(request)
        body = convert(await request.json(allow_empty=True), PurgeBody)
        event_id = request.path_params.get("event_id", body.purge_up_to_event_id)
        if event_id is not None:
            event_id = check_event_id(event_id)
            if await self._queries.event(room_id, event_id) is None:
                raise not_found("There is no such event in this room")
        elif body.purge_up_to_ts is not None:
            event_id = await self._queries.event_at(room_id, body.purge_up_to_ts)
            if event_id is None:
                raise not_found("There is no event before that time")
        else:
            raise bad_json("purge_up_to_event_id or purge_up_to_ts is needed")
        asked = {"before_event_id": event_id, "delete_local_events": body.delete_local_events}
        purge_id = await self._tasks.begin("purge_history", room_id, asked)
        return json_response({"purge_id": purge_id})

    async def get_purge_status(self, request: Request) -> Response:
        """Say what became of a purge of history."""
        await self._edge.authenticate_admin(request)
        task = await self._db.read(room_tasks.load_task, request.path_params["purge_id"])
        if task is None or task.kind != "purge_history":
            raise not_found("There is no such purge")
        answer: dict[str, str] = {"status": task.status}
        if task.error:
            answer["error"] = task.error
        return json_response(answer)

    # -- rooms
    # -----------------------------------------------------------------------------------------------------

    async def delete_and_wait(self, request: Request) -> Response:
        """Empty a room and forget it, and answer when that is done."""
        task = await self._tasks.wait(await self._begin_delete(request))
        if task.status == "failed":
            raise MatrixError("M_UNKNOWN", 500, task.error)
        return json_response(task.result)

    async def delete(self, request: Request) -> Response:
        """Empty a room and forget it, in the background."""
        return json_response({"delete_id": await self._begin_delete(request)})

    async def _begin_delete(self, request: Request) -> str:
        session = await self._edge.authenticate_admin(request)
        room_id = room_id_of(request)
        body = convert(await request.json(allow_empty=True), DeleteBody)
        if len(body.room_name or "") > MAX_NAME_CHARS or len(body.message or "") > MAX_MESSAGE_CHARS:
            raise invalid_param("The new room's name or message is too long")
        if body.new_room_user_id is not None:
            user_id = local_user(self._edge.config, body.new_room_user_id)
            if not await self._db.read(users.user_exists, user_id):
                raise not_found("The user of the new room is not found")
        if not body.block and not await self._queries.rooms([room_id]):
            # What is not known can be blocked ahead, and is not there to be deleted.
            raise not_found("Room not found")
        asked: dict[str, Any] = {
            "new_room_user_id": body.new_room_user_id,
            "room_name": body.room_name,
            "message": body.message,
            "purge": body.purge,
            "force_purge": body.force_purge,
        }
        blocker = session.user_id if body.block else None
        return await self._tasks.begin("delete_room", room_id, asked, block_by=blocker)

    async def list_delete_status(self, request: Request) -> Response:
        """Say what became of the deletions of a room in the last days."""
        await self._edge.authenticate_admin(request)
        found = await self._db.read(room_tasks.load_tasks_of, room_id_of(request), "delete_room")
        if not found:
            raise not_found("No deletion of this room is known")
        return json_response({"results": [{"delete_id": task.task_id, **_status(task)} for task in found]})

    async def get_delete_status(self, request: Request) -> Response:
        """Say what became of a deletion."""
        await self._edge.authenticate_admin(request)
        task = await self._db.read(room_tasks.load_task, request.path_params["delete_id"])
        if task is None or task.kind != "delete_room":
            raise not_found("There is no such deletion")
        return json_response({"room_id": task.room_id, **_status(task)})


def _status(task: RoomTask) -> dict[str, Any]:
    # The words that existing tools know: what is under way is being shut down, or purged.
    status = "shutting_down" if task.status == "active" else task.status
    answer: dict[str, Any] = {"status": status, "shutdown_room": task.result}
    if task.error:
        answer["error"] = task.error
    return answer
