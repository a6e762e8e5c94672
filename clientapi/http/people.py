"""Finding people: the user directory."""

import msgspec
import orjson

from clientapi.http.edge import Edge, read_body
from clientapi.rooms.membership import JOIN_RULES
from clientapi.rooms.parts import Rooms
from clientapi.rooms.queries import state_of
from clientapi.storage import administration
from clientapi.storage.administration import Account
from servicekit.errors import forbidden, invalid_param
from servicekit.http import Request, Response, Router, json_response

DEFAULT_RESULTS = 10
MAX_RESULTS = 50
MAX_TERM_CHARS = 300
# Of so many whose name fits it is looked up whether they may be shown.
MAX_CANDIDATES = 200
# In so many of their rooms it is looked up whether they are open to all.
MAX_ROOMS = 1000
HISTORY = ("m.room.history_visibility", "")


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

        Only those with whom one shares a room, or who are in a room that anybody may join or read; the
        configuration may open it to all.
        """
        session = await self._edge.authenticate_no_guest(request)
        settings = self._edge.config.user_directory
        if not settings.enabled:
            raise forbidden("The user directory is off")
        body = await read_body(request, SearchBody)
        if body.limit < 0:
            raise invalid_param("limit must not be negative")
        self._edge.searches.check(session.user_id)
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
        shared = rooms_of.get(user_id, set())
        theirs: set[str] = set().union(*rooms_of.values()) - shared
        shown = shared | await self._open_to_all(sorted(theirs)[:MAX_ROOMS])
        return [
            account
            for account in found
            if account.user_id == user_id or not shown.isdisjoint(rooms_of.get(account.user_id, ()))
        ]

    async def _open_to_all(self, room_ids: list[str]) -> set[str]:
        """Return those of these rooms that anybody may join or read."""
        found = set()
        for room in await self._rooms.sender.queries.rooms(room_ids, keys=(JOIN_RULES, HISTORY)):
            state = state_of(room)
            rules, history = state.get(JOIN_RULES), state.get(HISTORY)
            if (rules is not None and rules.content.get("join_rule") == "public") or (
                history is not None and history.content.get("history_visibility") == "world_readable"
            ):
                found.add(room.room_id)
        return found
