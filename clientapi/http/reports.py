"""Reporting rooms, events and users to the server's administrators (spec, "Reporting Content").

Every report is stored and answered alike, whether what it names exists or not: nobody learns from it.
"""

import secrets
from typing import Annotated

import msgspec
from sqlalchemy import Connection

from clientapi.accounts.sessions import Session
from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, check_event_id, check_user_id, read_body, room_id_of
from clientapi.storage.reports import Report, count_reports_by, store_report
from servicekit.database import Database
from servicekit.errors import invalid_param, too_much
from servicekit.http import Request, Response, Router

MAX_REASON_CHARS = 5000
# Of one user, until an administrator deletes some.
MAX_REPORTS = 1000


class ReportBody(msgspec.Struct):
    """`POST /rooms/{roomId}/report`, `POST /users/{userId}/report`."""

    reason: str


class EventReportBody(msgspec.Struct):
    """`POST /rooms/{roomId}/report/{eventId}`."""

    reason: str | None = None
    score: Annotated[int, msgspec.Meta(ge=-100, le=0)] | None = None


class ReportEndpoints:
    """`/rooms/{roomId}/report`, `/rooms/{roomId}/report/{eventId}`, `/users/{userId}/report`."""

    def __init__(self, edge: Edge, db: Database, clock: Clock) -> None:
        self._edge = edge
        self._db = db
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        room = "/_matrix/client/v3/rooms/{room_id}/report"
        router.add(
            "POST",
            room,
            self.report_room,
            aliases=["/_matrix/client/unstable/org.matrix.msc4151/rooms/{room_id}/report"],
        )
        router.add("POST", room + "/{event_id}", self.report_event)
        router.add("POST", "/_matrix/client/v3/users/{user_id}/report", self.report_user)

    async def report_room(self, request: Request) -> Response:
        """Report a room."""
        session = await self._authenticate(request)
        room_id = room_id_of(request)
        body = await read_body(request, ReportBody)
        return await self._store(session, body.reason, room_id=room_id)

    async def report_event(self, request: Request) -> Response:
        """Report an event."""
        session = await self._authenticate(request)
        room_id = room_id_of(request)
        event_id = check_event_id(request.path_params["event_id"])
        body = await read_body(request, EventReportBody, allow_empty=True)
        return await self._store(
            session, body.reason or "", room_id=room_id, event_id=event_id, score=body.score
        )

    async def report_user(self, request: Request) -> Response:
        """Report a user."""
        session = await self._authenticate(request)
        user_id = check_user_id(request.path_params["user_id"])
        body = await read_body(request, ReportBody)
        return await self._store(session, body.reason, user_id=user_id)

    async def _authenticate(self, request: Request) -> Session:
        session = await self._edge.authenticate_no_guest(request)
        self._edge.messages.check(session.user_id)
        return session

    async def _store(
        self,
        session: Session,
        reason: str,
        *,
        room_id: str = "",
        event_id: str = "",
        user_id: str = "",
        score: int | None = None,
    ) -> Response:
        if len(reason) > MAX_REASON_CHARS:
            raise invalid_param(f"reason has at most {MAX_REASON_CHARS} characters")
        report = Report(
            report_id=secrets.token_urlsafe(12),
            created_ms=self._clock(),
            reporter=session.user_id,
            room_id=room_id,
            event_id=event_id,
            user_id=user_id,
            reason=reason,
            score=score,
        )

        def store(conn: Connection) -> None:
            if count_reports_by(conn, session.user_id) >= MAX_REPORTS:
                raise too_much("You have reported too much")
            store_report(conn, report)

        await self._db.write(store)
        return EMPTY
