"""`GET /room_summary/{roomIdOrAlias}`: what a room is, for who may see it; `/mutual_rooms`.

Of rooms that no local user is in other servers are asked, for who is logged in.
"""

import time
from typing import Any

import grpc.aio
import orjson
from sqlalchemy import Connection

from arbor.accounts.v1 import accounts_pb2
from matrixlib.identifiers import IdentifierError, parse_user_id, server_name_of
from servicekit.errors import MatrixError, invalid_param, missing_param
from servicekit.grpc import matrix_error_from
from servicekit.http import Request, Response, Router, json_response
from syncapi.auth import Accounts, Caller
from syncapi.http.edge import Edge, not_found
from syncapi.http.hierarchy import load_summary, may_look_into, may_see_told
from syncapi.remote import RemoteHistory
from syncapi.remote_spaces import RemoteSpaces, Wanted, via_of
from syncapi.storage import members
from syncapi.storage.sql import rows
from syncapi.storage.tables import MAX_POSITION

MAX_MUTUAL = 1000


def load_room_summary(connection: Connection, user_id: str | None, room_id: str) -> bytes:
    """Return a room's summary; `user_id` None: of who is not logged in.

    Raises:
        MatrixError: M_NOT_FOUND, also for who may not see it.
    """
    visible = may_look_into(connection, user_id or "", room_id)
    summary = load_summary(connection, room_id, []) if visible else None
    if summary is None or not summary["num_joined_members"]:
        raise _no_room()
    return _render(connection, user_id, summary)


def load_told_summary(
    connection: Connection, user_id: str, room_id: str, told: dict[str, Any] | None
) -> bytes:
    """Return a room's summary as another server told it, else as it was known here last.

    Raises:
        MatrixError: M_NOT_FOUND, also for who may not see it.
    """
    if told is None:
        return load_room_summary(connection, user_id, room_id)
    if not may_see_told(connection, user_id, told):
        raise _no_room()
    return _render(connection, user_id, dict(told))


def is_lived_in(connection: Connection, room_id: str) -> bool:
    """Whether a local user is joined to a room: then what is known here is how it is."""
    return any(row.joined_until == MAX_POSITION for row in members.load_users_of_room(connection, room_id))


def _no_room() -> MatrixError:
    return not_found("There is no such room, or it is not for you to see")


def _render(connection: Connection, user_id: str | None, summary: dict[str, Any]) -> bytes:
    del summary["children_state"]
    if user_id is not None:
        row = members.load_user_room(connection, user_id, summary["room_id"])
        summary["membership"] = "leave" if row is None or row.forgotten else row.membership
    # The names of before the spec had them.
    if "encryption" in summary:
        summary["im.nheko.summary.encryption"] = summary["encryption"]
    if "room_version" in summary:
        for name in ("version", "room_version"):
            summary[f"im.nheko.summary.{name}"] = summary["room_version"]
    return orjson.dumps(summary)


def load_mutual_rooms(connection: Connection, caller: Caller, user_id: str, after: str) -> bytes:
    """Return the rooms in which the caller and another user are joined, those after a room's id."""
    found = [
        room_id
        for (room_id,) in rows(
            connection,
            "SELECT u.room_id FROM user_room u JOIN room_state s ON s.room_id = u.room_id"
            " AND s.type = 'm.room.member' AND s.state_key = ? AND s.membership = 'join'"
            " AND s.until_position = ? WHERE u.user_id = ? AND u.joined_until = ? ORDER BY u.room_id",
            (user_id, MAX_POSITION, caller.user_id, MAX_POSITION),
        )
    ]
    rest = [room_id for room_id in found if room_id > after]
    answer: dict[str, object] = {"joined": rest[:MAX_MUTUAL], "count": len(found)}
    if len(rest) > MAX_MUTUAL:
        answer["next_batch"] = rest[MAX_MUTUAL - 1]
    return orjson.dumps(answer)


async def resolve_alias(
    accounts: Accounts, remote: RemoteHistory | None, alias: str
) -> tuple[str, list[str]]:
    """Return the room of an alias, and servers in it where another one told us of it.

    Args:
        remote: who asks the alias's server where it is not ours; None: nobody does.

    Raises:
        MatrixError: M_NOT_FOUND.
    """
    try:
        told = await accounts.QueryAliases(accounts_pb2.QueryAliasesRequest(aliases=[alias]))
    except grpc.aio.AioRpcError as error:
        raise matrix_error_from(error) from error
    for found in told.aliases:
        return found.room_id, []
    elsewhere = None if remote is None else await remote.room_of_alias(alias)
    if elsewhere is None:
        raise not_found("No room has this alias")
    return elsewhere


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""
    spaces = RemoteSpaces(edge.remote, time.monotonic)

    async def get_summary(request: Request) -> Response:
        user_id: str | None = None
        if request.access_token is not None:
            user_id = (await edge.caller(request)).user_id
        room_id = request.path_params["room_id_or_alias"]
        servers: list[str] = []
        if room_id.startswith("#"):
            remote = None if user_id is None else edge.remote
            room_id, servers = await resolve_alias(edge.accounts, remote, room_id)
        elif not room_id.startswith("!"):
            raise invalid_param("Neither a room id nor an alias")
        if user_id is None or await edge.read(is_lived_in, room_id):
            return json_response(await edge.read(load_room_summary, user_id, room_id))
        wanted = Wanted(
            room_id, via_of({"via": [*request.query_all("via"), *servers, server_name_of(room_id)]})
        )
        if room_id not in spaces.told() and wanted.via:
            await spaces.fetch([wanted])
        told = spaces.told().get(room_id)
        return json_response(await edge.read(load_told_summary, user_id, room_id, told))

    async def get_mutual_rooms(request: Request) -> Response:
        caller = await edge.caller(request)
        user_id = request.query.get("user_id")
        if user_id is None:
            raise missing_param("user_id is missing")
        try:
            parse_user_id(user_id)
        except IdentifierError as error:
            raise invalid_param("user_id is not a user id") from error
        if user_id == caller.user_id:
            raise MatrixError("M_INVALID_PARAM", 400, "All rooms are shared with oneself")
        after = request.query.get("from", request.query.get("batch_token", ""))
        if after and not after.startswith("!"):
            raise invalid_param("from is not a token of this endpoint")
        return json_response(await edge.read(load_mutual_rooms, caller, user_id, after))

    router.add(
        "GET",
        "/_matrix/client/v1/room_summary/{room_id_or_alias}",
        get_summary,
        aliases=(
            "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
            "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
        ),
    )
    router.add(
        "GET",
        "/_matrix/client/v1/mutual_rooms",
        get_mutual_rooms,
        aliases=("/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",),
    )
