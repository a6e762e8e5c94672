"""`GET /room_summary/{roomIdOrAlias}`: what a room is, for who may see it; `/mutual_rooms`.

NOTSPEC: rooms that no local user is in are not asked of other servers (`via` is taken and not used).
"""

import grpc.aio
import orjson
from sqlalchemy import Connection

from arbor.accounts.v1 import accounts_pb2
from matrixlib.identifiers import IdentifierError, parse_user_id
from servicekit.errors import MatrixError, invalid_param, missing_param
from servicekit.grpc import matrix_error_from
from servicekit.http import Request, Response, Router, json_response
from syncapi.auth import Accounts, Caller
from syncapi.http.edge import Edge, not_found
from syncapi.http.hierarchy import load_summary, may_look_into
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
        raise not_found("There is no such room, or it is not for you to see")
    del summary["children_state"]
    if user_id is not None:
        row = members.load_user_room(connection, user_id, room_id)
        if row is not None and not row.forgotten:
            summary["membership"] = row.membership
    # The names of before the spec had them.
    if "encryption" in summary:
        summary["im.nheko.summary.encryption"] = summary["encryption"]
    summary["im.nheko.summary.version"] = summary["im.nheko.summary.room_version"] = summary["room_version"]
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


async def resolve_alias(accounts: Accounts, alias: str) -> str:
    """Return the room of a local alias.

    Raises:
        MatrixError: M_NOT_FOUND.
    """
    try:
        told = await accounts.QueryAliases(accounts_pb2.QueryAliasesRequest(aliases=[alias]))
    except grpc.aio.AioRpcError as error:
        raise matrix_error_from(error) from error
    for found in told.aliases:
        return found.room_id
    raise not_found("No room has this alias")


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoints."""

    async def get_summary(request: Request) -> Response:
        user_id: str | None = None
        if request.access_token is not None:
            user_id = (await edge.caller(request)).user_id
        room_id = request.path_params["room_id_or_alias"]
        if room_id.startswith("#"):
            room_id = await resolve_alias(edge.accounts, room_id)
        elif not room_id.startswith("!"):
            raise invalid_param("Neither a room id nor an alias")
        return json_response(await edge.read(load_room_summary, user_id, room_id))

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
