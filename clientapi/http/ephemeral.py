"""Typing, receipts and read markers."""

import msgspec
from sqlalchemy import Connection

from arbor.log.v1 import output_pb2
from clientapi.accounts.account_data import AccountDataStore
from clientapi.accounts.sessions import Session
from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, check_event_id, read_body, room_id_of
from clientapi.rooms.parts import Rooms
from servicekit.errors import forbidden, invalid_param
from servicekit.http import Request, Response, Router

MAX_TYPING_MS = 120_000
DEFAULT_TYPING_MS = 30_000
# How far relations are followed to their thread, as clients do.
MAX_HOPS = 4
RECEIPT_TYPES = ("m.read", "m.read.private", "m.fully_read")


class TypingBody(msgspec.Struct):
    """`PUT /rooms/{roomId}/typing/{userId}`."""

    typing: bool
    timeout: int | None = None


class EphemeralEndpoints:
    """`/rooms/{roomId}/typing`, `…/receipt`, `…/read_markers`."""

    def __init__(self, edge: Edge, rooms: Rooms, account_data: AccountDataStore, clock: Clock) -> None:
        self._edge = edge
        self._rooms = rooms
        self._account_data = account_data
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        room = "/_matrix/client/v3/rooms/{room_id}"
        router.add("PUT", room + "/typing/{user_id}", self.put_typing)
        router.add("POST", room + "/receipt/{receipt_type}/{event_id}", self.post_receipt)
        router.add("POST", room + "/read_markers", self.post_read_markers)

    async def put_typing(self, request: Request) -> Response:
        """Say whether one types."""
        session = await self._edge.authenticate_as(request)
        self._edge.ephemeral.check(session.user_id)
        room_id = room_id_of(request)
        body = await read_body(request, TypingBody)
        timeout_ms = DEFAULT_TYPING_MS if body.timeout is None else body.timeout
        if timeout_ms < 0:
            raise invalid_param("timeout must not be negative")
        await self._check_joined(room_id, session)
        if body.typing:
            await self._rooms.typing.begin(room_id, session.user_id, min(timeout_ms, MAX_TYPING_MS))
        else:
            await self._rooms.typing.end(room_id, session.user_id)
        return EMPTY

    async def post_receipt(self, request: Request) -> Response:
        """Say up to where one has read."""
        session = await self._edge.authenticate(request)
        self._edge.ephemeral.check(session.user_id)
        room_id = room_id_of(request)
        kind = request.path_params["receipt_type"]
        if kind not in RECEIPT_TYPES:
            raise invalid_param(f"The type of a receipt is one of {', '.join(RECEIPT_TYPES)}")
        event_id = check_event_id(request.path_params["event_id"])
        thread_id = (await request.json(allow_empty=True)).get("thread_id")
        if thread_id is not None and (
            not isinstance(thread_id, str) or not thread_id or kind == "m.fully_read"
        ):
            raise invalid_param("thread_id must be a string that holds something, and not for m.fully_read")
        await self._check_joined(room_id, session)
        if thread_id is not None and thread_id != "main":
            await self._check_in_thread(room_id, event_id, check_event_id(thread_id))
        await self._store(session, room_id, {kind: event_id}, thread_id or "")
        return EMPTY

    async def _check_in_thread(self, room_id: str, event_id: str, thread_id: str) -> None:
        """Check that an event is in a thread ("Threaded read receipts"): its root, a reply in it, or related to one.

        An event that has not come here yet is taken at its word.

        Raises:
            MatrixError: M_INVALID_PARAM.
        """
        at = event_id
        for _ in range(MAX_HOPS):
            if at == thread_id:
                return
            event = await self._rooms.sender.queries.event(room_id, at)
            if event is None:
                if at == event_id:
                    return
                break
            relation = event.content.get("m.relates_to")
            related = relation.get("event_id") if isinstance(relation, dict) else None
            if not isinstance(relation, dict) or not isinstance(related, str):
                break
            if relation.get("rel_type") == "m.thread" and related != thread_id:
                break
            at = related
        if at != thread_id:
            raise invalid_param(f"{event_id} is not in the thread {thread_id}")

    async def post_read_markers(self, request: Request) -> Response:
        """Set the read marker and receipts at once."""
        session = await self._edge.authenticate(request)
        self._edge.ephemeral.check(session.user_id)
        room_id = room_id_of(request)
        body = await request.json()
        marks = {kind: check_event_id(body[kind]) for kind in RECEIPT_TYPES if body.get(kind) is not None}
        await self._check_joined(room_id, session)
        await self._store(session, room_id, marks, "")
        return EMPTY

    async def _store(self, session: Session, room_id: str, marks: dict[str, str], thread_id: str) -> None:
        now = self._clock()
        receipts = [
            output_pb2.Receipt(
                user_id=session.user_id,
                receipt_type=kind,
                event_id=event_id,
                thread_id=thread_id,
                timestamp_ms=now,
            )
            for kind, event_id in marks.items()
            if kind != "m.fully_read"
        ]
        fully_read = marks.get("m.fully_read")

        def store(conn: Connection) -> None:
            if fully_read is not None:
                content = msgspec.json.encode({"event_id": fully_read})
                self._account_data.store(conn, session.user_id, room_id, "m.fully_read", content)
            if receipts:
                self._rooms.teller.tell_receipts(conn, room_id, receipts)

        if marks:
            await self._rooms.db.write(store)

    async def _check_joined(self, room_id: str, session: Session) -> None:
        if not await self._rooms.sender.is_joined(room_id, session.user_id, ask_again=True):
            # Whether there is such a room is for its members to know.
            raise forbidden("You are not in this room")
