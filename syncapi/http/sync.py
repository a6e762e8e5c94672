"""`GET /sync`."""

from servicekit.http import Request, Response, Router, json_response
from syncapi.http.edge import Edge
from syncapi.sync.request import MAX_TIMEOUT_MS, SyncRequest, check_set_presence
from syncapi.tokens import parse_sync_token

UNSTABLE_STATE_AFTER = "org.matrix.msc4222.use_state_after"


def add_routes(router: Router, edge: Edge) -> None:
    """Add the endpoint."""

    async def sync(request: Request) -> Response:
        caller = await edge.tokens.resolve(request)
        query = request.query
        presence = check_set_presence(query.get("set_presence"))
        since = query.get("since")
        unstable = request.query_bool(UNSTABLE_STATE_AFTER)
        wanted = SyncRequest(
            caller.user_id,
            caller.device_id,
            await edge.filters.load(caller.user_id, query.get("filter")),
            since=None if since is None else parse_sync_token(since),
            timeout_ms=request.query_int("timeout", 0, maximum=MAX_TIMEOUT_MS),
            full_state=request.query_bool("full_state"),
            use_state_after=unstable or request.query_bool("use_state_after"),
            unstable_state_after=unstable and not request.query_bool("use_state_after"),
        )
        with edge.presence.reading(caller.user_id, caller.device_id, presence):
            return json_response(await edge.engine.answer(wanted))

    router.add("GET", "/_matrix/client/v3/sync", sync)
