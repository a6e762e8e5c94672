"""Questions to other servers on behalf of local users. What comes back is checked for its form and its reach:
a server speaks for its own users, aliases and keys only.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import BadAnswer, RemoteError, RemoteRefused, client_error
from matrixlib.identifiers import (
    is_valid_server_name,
    is_valid_user_id,
    parse_room_id,
    server_name_of,
)
from servicekit.errors import invalid_param, not_found
from servicekit.logging import get_logger

log = get_logger("federation.queries")

PROFILE_TIMEOUT_S = 10.0
QUERY_TIMEOUT_S = 20.0
KEYS_TIMEOUT_S = 10.0
MAX_KEYS_TIMEOUT_S = 60.0
MAX_SERVERS = 200
MAX_ROOMS = 500
MAX_HIERARCHY_SERVERS = 3

# Profile fields that clients show as text; a server that gives something else is not believed.
_TEXT_FIELDS = ("displayname", "avatar_url")


class RemoteQueries:
    """See the module."""

    def __init__(self, client: FederationClient, local_names: Sequence[str]) -> None:
        self._client = client
        self._local_names = frozenset(local_names)

    async def alias(self, alias: str) -> tuple[str, list[str]]:
        """Return (room id, servers in it) of an alias of another server.

        Raises:
            MatrixError: there is no such alias, or the server is out of reach.
        """
        server = self._other(server_name_of(alias))
        path = path_of("/_matrix/federation/v1/query/directory", room_alias=alias)
        try:
            answer = await self._client.get(server, path, timeout_s=QUERY_TIMEOUT_S, ignore_backoff=True)
            given = answer if isinstance(answer, dict) else {}
            room_id = given.get("room_id")
            servers = given.get("servers")
            if not isinstance(servers, list):
                raise BadAnswer(server, "servers is no array")
            try:
                parse_room_id(room_id)
            except ValueError as error:
                raise BadAnswer(server, "room_id is no room id") from error
        except RemoteError as error:
            raise client_error(error) from error
        names = [name for name in servers if isinstance(name, str) and is_valid_server_name(name)]
        return str(room_id), list(dict.fromkeys([*names, server]))[:MAX_SERVERS]

    async def profile(self, user_id: str, field: str) -> dict[str, Any] | None:
        """Return a profile, or one field of it; None: the server says that there is no such user.

        Raises:
            RemoteError: the server could not be asked, or gave nothing usable.
        """
        server = server_name_of(user_id)
        query = {"user_id": user_id, **({"field": field} if field else {})}
        path = path_of("/_matrix/federation/v1/query/profile", **query)
        try:
            answer = await self._client.get(server, path, timeout_s=PROFILE_TIMEOUT_S, max_bytes=256 * 1024)
        except RemoteRefused as error:
            if error.http_status == 404:
                return None
            raise
        if not isinstance(answer, dict):
            raise BadAnswer(server, "the profile is no object")
        return {
            key: value
            for key, value in answer.items()
            if (not field or key == field) and (key not in _TEXT_FIELDS or isinstance(value, str))
        }

    async def public_rooms(self, server: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """Return another server's public rooms, those entries of it that have the right form.

        Raises:
            MatrixError: it does not tell.
        """
        self._other(server)
        try:
            answer = await self._client.request(
                server,
                "POST",
                "/_matrix/federation/v1/publicRooms",
                content=query,
                timeout_s=QUERY_TIMEOUT_S,
                ignore_backoff=True,
            )
            if not isinstance(answer, dict) or not isinstance(answer.get("chunk"), list):
                raise BadAnswer(server, "chunk is no array")
        except RemoteError as error:
            raise client_error(error) from error
        result: dict[str, Any] = {"chunk": [room for room in answer["chunk"][:MAX_ROOMS] if _is_room(room)]}
        for key in ("next_batch", "prev_batch"):
            if isinstance(answer.get(key), str):
                result[key] = answer[key]
        estimate = answer.get("total_room_count_estimate")
        if type(estimate) is int:
            result["total_room_count_estimate"] = estimate
        return result

    async def hierarchy(self, room_id: str, via: Sequence[str], suggested_only: bool) -> dict[str, Any]:
        """Return a room and its children as another server knows them.

        Raises:
            MatrixError: nobody tells.
        """
        servers = [name for name in dict.fromkeys(via) if self._is_other(name)][:MAX_HIERARCHY_SERVERS]
        path = path_of(
            "/_matrix/federation/v1/hierarchy/{}",
            room_id,
            suggested_only="true" if suggested_only else "false",
        )
        last: RemoteError | None = None
        for server in servers:
            try:
                answer = await self._client.get(server, path, timeout_s=QUERY_TIMEOUT_S)
                return _hierarchy(server, room_id, answer)
            except RemoteError as error:
                last = error
        raise client_error(last) if last is not None else not_found("No server is known that is in the room")

    async def user_keys(self, user_ids: Sequence[str], timeout_s: float) -> tuple[list[Any], list[str]]:
        """Return (one answer a server, with its own users only; servers that failed) for users' keys."""
        by_server: dict[str, list[str]] = {}
        for user_id in user_ids:
            if is_valid_user_id(user_id) and self._is_other(server_name_of(user_id)):
                by_server.setdefault(server_name_of(user_id), []).append(user_id)
        contents: dict[str, dict[str, Any]] = {
            server: {"device_keys": {user_id: [] for user_id in users}} for server, users in by_server.items()
        }
        answers, failed = await self._ask_all("/_matrix/federation/v1/user/keys/query", contents, timeout_s)
        kept = []
        for server, answer in answers.items():
            asked = set(by_server[server])
            kept.append(
                {
                    key: {user: keys for user, keys in answer[key].items() if user in asked}
                    for key in ("device_keys", "master_keys", "self_signing_keys")
                    if isinstance(answer.get(key), dict)
                }
            )
        return kept, failed

    async def claim_keys(
        self, wanted: Mapping[str, Any], timeout_s: float
    ) -> tuple[dict[str, Any], list[str]]:
        """Return (user -> device -> keys; servers that failed) of one-time keys claimed."""
        contents: dict[str, dict[str, Any]] = {}
        for user_id, devices in wanted.items():
            if is_valid_user_id(user_id) and self._is_other(server_name_of(user_id)):
                content = contents.setdefault(server_name_of(user_id), {"one_time_keys": {}})
                content["one_time_keys"][user_id] = devices
        answers, failed = await self._ask_all("/_matrix/federation/v1/user/keys/claim", contents, timeout_s)
        keys: dict[str, Any] = {}
        for server, answer in answers.items():
            given = answer.get("one_time_keys")
            asked = contents[server]["one_time_keys"]
            if isinstance(given, dict):
                keys |= {u: d for u, d in given.items() if u in asked and isinstance(d, dict)}
        return keys, failed

    async def _ask_all(
        self, path: str, contents: Mapping[str, Mapping[str, Any]], timeout_s: float
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        limit_s = min(timeout_s or KEYS_TIMEOUT_S, MAX_KEYS_TIMEOUT_S)
        answers: dict[str, dict[str, Any]] = {}

        async def ask(server: str, content: Mapping[str, Any]) -> None:
            try:
                answer = await self._client.request(server, "POST", path, content=content, timeout_s=limit_s)
            except RemoteError as error:
                log.info("keys_not_got", server=server, reason=str(error))
                return
            if isinstance(answer, dict):
                answers[server] = answer

        async with asyncio.TaskGroup() as group:
            for server, content in contents.items():
                group.create_task(ask(server, content))
        return answers, sorted(set(contents) - set(answers))

    def _is_other(self, server_name: str) -> bool:
        return is_valid_server_name(server_name) and server_name not in self._local_names

    def _other(self, server_name: str) -> str:
        if not self._is_other(server_name):
            raise invalid_param("Not a name of another server")
        return server_name


def _is_room(value: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(value, dict):
        return False
    try:
        parse_room_id(value.get("room_id"))
    except ValueError:
        return False
    texts = ("name", "topic", "avatar_url", "canonical_alias", "join_rule", "room_type")
    return (
        type(value.get("num_joined_members")) is int
        and all(value.get(key) is None or isinstance(value[key], str) for key in texts)
        and all(isinstance(value.get(key, False), bool) for key in ("world_readable", "guest_can_join"))
    )


def _hierarchy(server: str, room_id: str, answer: Any) -> dict[str, Any]:
    room = answer.get("room") if isinstance(answer, dict) else None
    if not _is_room(room) or room["room_id"] != room_id:
        raise BadAnswer(server, "room is not the one asked for")
    children = answer.get("children")
    inaccessible = answer.get("inaccessible_children")
    return {
        "room": _with_children_state(room),
        "children": [
            _with_children_state(child)
            for child in (children[:MAX_ROOMS] if isinstance(children, list) else ())
            if _is_room(child)
        ],
        "inaccessible_children": [
            child
            for child in (inaccessible[:MAX_ROOMS] if isinstance(inaccessible, list) else ())
            if isinstance(child, str)
        ],
    }


def _with_children_state(room: dict[str, Any]) -> dict[str, Any]:
    state = room.get("children_state")
    return {**room, "children_state": state if isinstance(state, list) else []}
