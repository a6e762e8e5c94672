"""The part of the Synapse-compatible admin API that is about what users reported."""

from typing import Any, Final

from clientapi.http.admin_parameters import page_of_query
from clientapi.http.edge import EMPTY, Edge
from clientapi.rooms.parts import Rooms
from clientapi.rooms.queries import state_of
from clientapi.storage import reports
from clientapi.storage.reports import Kind, Report
from matrixlib.events import StateKey
from servicekit.errors import not_found
from servicekit.http import Handler, Request, Response, Router, json_response

_ADMIN: Final = "/_synapse/admin/v1"
# Reports of a kind, and by which query parameter they are chosen by what they are about.
_KINDS: Final[tuple[tuple[Kind, str], ...]] = (
    ("event", "room_id"),
    ("user", "target_user_id"),
    ("room", "room_id"),
)
_NAME: Final[StateKey] = ("m.room.name", "")
_ALIAS: Final[StateKey] = ("m.room.canonical_alias", "")


class AdminReportEndpoints:
    """`/event_reports`, `/user_reports`, `/room_reports`."""

    def __init__(self, edge: Edge, rooms: Rooms) -> None:
        self._edge = edge
        self._db = rooms.db
        self._queries = rooms.sender.queries

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        for kind, about in _KINDS:
            path = f"{_ADMIN}/{kind}_reports"
            router.add("GET", path, self._lister(kind, about))
            router.add("GET", path + "/{report_id}", self._getter(kind))
            router.add("DELETE", path + "/{report_id}", self._deleter(kind))

    def _lister(self, kind: Kind, about: str) -> Handler:
        async def list_reports(request: Request) -> Response:
            await self._edge.authenticate_admin(request)
            page = page_of_query(request, "b")
            found, total = await self._db.read(
                reports.load_reports,
                kind,
                reporter=request.query.get("user_id"),
                about=request.query.get(about),
                backwards=page.backwards,
                start=page.start,
                limit=page.limit,
            )
            answer = {f"{kind}_reports": await self._listed(kind, found), "total": total}
            if found and page.start + len(found) < total:
                answer["next_token"] = page.start + len(found)
            return json_response(answer)

        return list_reports

    async def _listed(
        self, kind: Kind, found: list[Report], *, with_pdu: bool = False
    ) -> list[dict[str, Any]]:
        """Describe reports: of events and rooms with the room's name, of events with who sent them."""
        if kind == "user":
            return [_basics(report) | {"target_user_id": report.user_id} for report in found]
        room_ids = sorted({report.room_id for report in found})
        rooms = {
            room.room_id: state_of(room) for room in await self._queries.rooms(room_ids, keys=(_NAME, _ALIAS))
        }
        events = await self._queries.events([report.event_id for report in found if report.event_id])
        listed = []
        for report in found:
            state = rooms.get(report.room_id, {})
            entry = _basics(report) | {"room_id": report.room_id}
            for name, key, field in (("name", _NAME, "name"), ("canonical_alias", _ALIAS, "alias")):
                entry[name] = state[key].content.get(field) if key in state else None
            if kind == "event":
                event = events.get(report.event_id)
                if event is not None and event.room_id != report.room_id:
                    event = None
                entry |= {"event_id": report.event_id, "score": report.score}
                entry["sender"] = None if event is None else event.sender
                if with_pdu:
                    entry["event_json"] = None if event is None else event.pdu
            listed.append(entry)
        return listed

    def _getter(self, kind: Kind) -> Handler:
        async def get(request: Request) -> Response:
            await self._edge.authenticate_admin(request)
            report = await self._db.read(reports.load_report, kind, request.path_params["report_id"])
            if report is None:
                raise not_found("There is no such report")
            return json_response((await self._listed(kind, [report], with_pdu=True))[0])

        return get

    def _deleter(self, kind: Kind) -> Handler:
        async def remove(request: Request) -> Response:
            await self._edge.authenticate_admin(request)
            if not await self._db.write(reports.delete_report, kind, request.path_params["report_id"]):
                raise not_found("There is no such report")
            return EMPTY

        return remove


def _basics(report: Report) -> dict[str, Any]:
    return {
        "id": report.report_id,
        "received_ts": report.created_ms,
        "user_id": report.reporter,
        "reason": report.reason,
    }
