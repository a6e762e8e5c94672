"""Finding people: the user directory."""

import msgspec
import orjson
from sqlalchemy import Connection

from clientapi.http.edge import Edge, read_body
from clientapi.rooms.parts import Rooms
from clientapi.storage import administration, directory
from clientapi.storage.administration import Account
from servicekit.errors import forbidden, invalid_param
from servicekit.http import Request, Response, Router, json_response

DEFAULT_RESULTS = 10
MAX_RESULTS = 50
MAX_TERM_CHARS = 300
# Of so many whose name fits it is looked up whether they may be shown.
MAX_CANDIDATES = 200


class SearchBody(msgspec.Struct):
    """`POST /user_directory/search`."""

    search_term: str
    limit: int = DEFAULT_RESULTS


class PeopleEndpoints:
    """`/user_directory/search`."""

    def __init__(self, edge: Edge, rooms: Rooms) -> None:
        self._edge = edge
        self._rooms = rooms

    def add_routes(self, router: Router) -> None:
        """Add the route."""
        router.add("POST", "/_matrix/client/v3/user_directory/search", self.search)

    async def search(self, request: Request) -> Response:
        """Find users of this server whose name or id holds a term.

        Only those with whom one shares a room, or who are in a room of the directory; the configuration may
        open it to all.
        """
        session = await self._edge.authenticate_no_guest(request)
        settings = self._edge.config.user_directory
        if not settings.enabled:
            raise forbidden("The user directory is off")
        body = await read_body(request, SearchBody)
        if body.limit < 0:
            raise invalid_param("limit must not be negative")
        self._edge.messages.check(session.user_id)
        limit = min(body.limit, MAX_RESULTS)
        term = body.search_term.strip()
        if not term or len(term) > MAX_TERM_CHARS or limit == 0:
            # Longer than any name: nobody is called so.
            return json_response({"results": [], "limited": False})
        found = await self._rooms.db.read(administration.search_accounts, term, MAX_CANDIDATES + 1)
        capped = len(found) > MAX_CANDIDATES
        if not settings.search_all_users:
            found = await self._visible(session.user_id, found)
        results = []
        for account in found[:limit]:
            entry = {"user_id": account.user_id}
            if account.display_name_json is not None:
                entry["display_name"] = orjson.loads(account.display_name_json)
            if account.avatar_url_json is not None:
                entry["avatar_url"] = orjson.loads(account.avatar_url_json)
            results.append(entry)
        return json_response({"results": results, "limited": capped or len(found) > limit})

    async def _visible(self, user_id: str, found: list[Account]) -> list[Account]:
        if not found:
            return []
        asked = {user_id, *(account.user_id for account in found)}
        memberships = await self._rooms.sender.queries.memberships(sorted(asked), kinds=["join"])
        rooms_of: dict[str, set[str]] = {}
        for item in memberships:
            rooms_of.setdefault(item.membership.user_id, set()).add(item.room_id)
        theirs: set[str] = set().union(*rooms_of.values())
        shown = rooms_of.get(user_id, set()) | await self._rooms.db.read(_published_among, theirs)
        return [
            account
            for account in found
            if account.user_id == user_id or not shown.isdisjoint(rooms_of.get(account.user_id, ()))
        ]


def _published_among(conn: Connection, room_ids: set[str]) -> set[str]:
    return {room_id for room_id in directory.load_published(conn) if room_id in room_ids}
