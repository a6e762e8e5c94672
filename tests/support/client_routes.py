"""Every client-server route that is served, as the services themselves declare them, and requests to them.

`EXAMPLES` has a good body for each route that takes one; a route that is missing there fails the tests that
ask for it, so that a new endpoint cannot slip past them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from clientapi.service import create as create_clientapi
from servicekit.config import load_config
from servicekit.http import Router
from syncapi.service import create as create_syncapi

V3 = "/_matrix/client/v3"

# Routes that answer without an access token.
OPEN_ROUTES = {
    ("GET", "/_matrix/client/versions"),
    ("GET", "/.well-known/matrix/client"),
    ("GET", "/.well-known/matrix/support"),
    ("GET", "/_synapse/admin/v1/register"),
    ("POST", "/_synapse/admin/v1/register"),
    ("GET", f"{V3}/login"),
    ("POST", f"{V3}/login"),
    ("POST", f"{V3}/refresh"),
    ("POST", f"{V3}/register"),
    ("GET", f"{V3}/register/available"),
    ("GET", "/_matrix/client/v1/register/m.login.registration_token/validity"),
    ("GET", f"{V3}/profile/{{user_id}}"),
    ("GET", f"{V3}/profile/{{user_id}}/{{key_name}}"),
    ("GET", f"{V3}/directory/room/{{room_alias}}"),
    ("GET", f"{V3}/directory/list/room/{{room_id}}"),
    ("GET", "/_matrix/client/v1/room_summary/{room_id_or_alias}"),
}

_ROOM = f"{V3}/rooms/{{room_id}}"
_RULE = f"{V3}/pushrules/global/{{kind}}/{{rule_id}}"

EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/_synapse/admin/v1/register"): {
        "nonce": "n", "username": "u", "password": "p", "mac": "m", "admin": False, "displayname": "D",
    },
    ("POST", "/_synapse/admin/v1/registration_tokens/new"): {
        "token": "t", "uses_allowed": 1, "expiry_time": 9_000_000_000_000, "length": 16,
    },
    ("PUT", "/_synapse/admin/v1/registration_tokens/{token}"): {"uses_allowed": 2, "expiry_time": None},
    ("PUT", "/_synapse/admin/v2/users/{user_id}"): {
        "password": "p", "logout_devices": True, "displayname": "D", "avatar_url": "mxc://a/b", "admin": False,
        "deactivated": False, "locked": False,
    },
    ("POST", "/_synapse/admin/v1/deactivate/{user_id}"): {"erase": False},
    ("POST", "/_synapse/admin/v1/reset_password/{user_id}"): {"new_password": "p", "logout_devices": True},
    ("POST", "/_synapse/admin/v2/users/{user_id}/devices"): {"device_id": "D", "display_name": "d"},
    ("PUT", "/_synapse/admin/v2/users/{user_id}/devices/{device_id}"): {"display_name": "d"},
    ("POST", "/_synapse/admin/v2/users/{user_id}/delete_devices"): {"devices": ["D"]},
    ("PUT", "/_synapse/admin/v1/users/{user_id}/admin"): {"admin": True},
    ("PUT", "/_synapse/admin/v1/suspend/{user_id}"): {"suspend": False},
    ("PUT", "/_synapse/admin/v1/rooms/{room_id}/block"): {"block": False},
    ("POST", "/_synapse/admin/v1/rooms/{room_id}/make_room_admin"): {"user_id": "@nobody:arbor.test"},
    ("POST", "/_synapse/admin/v1/join/{room_id_or_alias}"): {"user_id": "@nobody:arbor.test"},
    ("POST", "/_synapse/admin/v1/purge_history/{room_id}"): {
        "delete_local_events": False, "purge_up_to_event_id": "$nothing", "purge_up_to_ts": 1,
    },
    ("POST", "/_synapse/admin/v1/purge_history/{room_id}/{event_id}"): {"delete_local_events": False},
    ("DELETE", "/_synapse/admin/v1/rooms/{room_id}"): {
        "new_room_user_id": "@nobody:arbor.test", "room_name": "n", "message": "m", "block": False,
        "purge": True, "force_purge": False,
    },
    ("DELETE", "/_synapse/admin/v2/rooms/{room_id}"): {
        "new_room_user_id": "@nobody:arbor.test", "room_name": "n", "message": "m", "block": False,
        "purge": True, "force_purge": False,
    },
    ("PUT", "/_matrix/client/v1/admin/lock/{user_id}"): {"locked": False},
    ("PUT", "/_matrix/client/v1/admin/suspend/{user_id}"): {"suspended": False},
    ("POST", f"{V3}/login"): {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "nobody"},
        "password": "wrong",
        "device_id": "DEV",
        "initial_device_display_name": "d",
        "refresh_token": True,
    },
    ("POST", f"{V3}/refresh"): {"refresh_token": "x"},
    ("POST", f"{V3}/register"): {
        "username": "somebody", "password": "p", "device_id": "D", "initial_device_display_name": "d",
        "inhibit_login": True, "refresh_token": False, "guest_access_token": "x",
        "auth": {"type": "m.login.dummy", "session": "s"},
    },
    ("POST", f"{V3}/account/password"): {
        "new_password": "x", "logout_devices": True, "auth": {"type": "m.login.password", "session": "s"},
    },
    ("POST", f"{V3}/account/deactivate"): {
        "erase": False, "auth": {"type": "m.login.password", "session": "s", "password": "wrong"},
    },
    ("PUT", f"{V3}/devices/{{device_id}}"): {"display_name": "d"},
    ("DELETE", f"{V3}/devices/{{device_id}}"): {"auth": {"type": "m.login.password", "session": "s"}},
    ("POST", f"{V3}/delete_devices"): {
        "devices": ["D"], "auth": {"type": "m.login.password", "session": "s"},
    },
    ("PUT", f"{V3}/profile/{{user_id}}/{{key_name}}"): {"displayname": "d"},
    ("POST", f"{V3}/user/{{user_id}}/filter"): {
        "event_fields": ["content"],
        "event_format": "client",
        "presence": {"limit": 3, "not_senders": ["@a:b"]},
        "account_data": {"types": ["m.*"]},
        "room": {
            "rooms": ["!a:b"],
            "include_leave": True,
            "timeline": {"limit": 3, "types": ["m.*"], "contains_url": True},
            "state": {"lazy_load_members": True},
            "ephemeral": {"not_types": ["x"]},
            "account_data": {"not_senders": ["@a:b"]},
        },
    },
    ("PUT", f"{V3}/user/{{user_id}}/account_data/{{type}}"): {"a": 1},
    ("PUT", f"{V3}/user/{{user_id}}/rooms/{{room_id}}/account_data/{{type}}"): {"a": 1},
    ("PUT", f"{V3}/user/{{user_id}}/rooms/{{room_id}}/tags/{{tag}}"): {"order": 0.5},
    ("PUT", _RULE): {
        "actions": ["notify", {"set_tweak": "sound", "value": "default"}],
        "conditions": [{"kind": "event_match", "key": "type", "pattern": "m.*"}],
    },
    ("PUT", _RULE + "/enabled"): {"enabled": True},
    ("PUT", _RULE + "/actions"): {"actions": ["notify"]},
    ("POST", f"{V3}/pushers/set"): {
        "kind": "http", "app_id": "a", "pushkey": "k", "app_display_name": "a", "device_display_name": "d",
        "lang": "en", "profile_tag": "t", "append": False,
        "data": {"url": "https://push.test/_matrix/push/v1/notify", "format": "event_id_only"},
    },
    ("POST", f"{V3}/createRoom"): {
        "visibility": "private", "room_alias_name": "an-alias", "name": "n", "topic": "t",
        "invite": ["@nobody:arbor.test"], "room_version": "11", "creation_content": {"m.federate": False},
        "initial_state": [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "x"}}],
        "preset": "private_chat", "is_direct": True, "power_level_content_override": {"ban": 50},
        "invite_3pid": [],
    },
    ("PUT", f"{_ROOM}/send/{{event_type}}/{{txn_id}}"): {"msgtype": "m.text", "body": "x"},
    ("POST", f"{_ROOM}/send/{{event_type}}"): {"msgtype": "m.text", "body": "x"},
    ("PUT", f"{_ROOM}/state/{{event_type}}"): {"name": "x"},
    ("PUT", f"{_ROOM}/state/{{event_type}}/{{state_key?}}"): {"name": "x"},
    ("PUT", f"{_ROOM}/redact/{{event_id}}/{{txn_id}}"): {"reason": "r"},
    ("POST", f"{_ROOM}/redact/{{event_id}}"): {"reason": "r"},
    ("POST", f"{_ROOM}/upgrade"): {"new_version": "999", "additional_creators": ["@a:arbor.test"]},
    ("POST", f"{V3}/join/{{room_id_or_alias}}"): {
        "reason": "r",
        "third_party_signed": {"sender": "@a:arbor.test", "mxid": "@a:arbor.test", "token": "t", "signatures": {}},
    },
    ("POST", f"{V3}/knock/{{room_id_or_alias}}"): {"reason": "r"},
    ("POST", f"{_ROOM}/join"): {"reason": "r"},
    ("POST", f"{_ROOM}/leave"): {"reason": "r"},
    ("POST", f"{_ROOM}/forget"): {},
    ("POST", f"{_ROOM}/invite"): {"user_id": "@nobody:arbor.test", "reason": "r"},
    ("POST", f"{_ROOM}/kick"): {"user_id": "@nobody:arbor.test", "reason": "r"},
    ("POST", f"{_ROOM}/ban"): {"user_id": "@nobody:arbor.test", "reason": "r"},
    ("POST", f"{_ROOM}/unban"): {"user_id": "@nobody:arbor.test", "reason": "r"},
    ("POST", f"{_ROOM}/report"): {"reason": "r"},
    ("POST", f"{_ROOM}/report/{{event_id}}"): {"reason": "r", "score": -1},
    ("POST", f"{V3}/users/{{user_id}}/report"): {"reason": "r"},
    ("PUT", f"{V3}/presence/{{user_id}}/status"): {"presence": "online", "status_msg": "s"},
    ("POST", f"{V3}/search"): {
        "search_categories": {
            "room_events": {
                "search_term": "a", "keys": ["content.body"], "filter": {"limit": 3}, "order_by": "recent",
                "event_context": {"before_limit": 1, "after_limit": 1, "include_profile": True},
                "include_state": True, "groupings": {"group_by": [{"key": "room_id"}]},
            },
        },
    },
    ("POST", f"{V3}/user_directory/search"): {"search_term": "a", "limit": 3},
    ("POST", f"{V3}/user/{{user_id}}/openid/request_token"): {},
    ("POST", "/_matrix/client/v1/login/get_token"): {"auth": {"type": "m.login.password", "session": "s"}},
    ("PUT", f"{_ROOM}/typing/{{user_id}}"): {"typing": True, "timeout": 1000},
    ("POST", f"{_ROOM}/receipt/{{receipt_type}}/{{event_id}}"): {"thread_id": "main"},
    ("POST", f"{_ROOM}/read_markers"): {
        "m.fully_read": "$event", "m.read": "$event", "m.read.private": "$event",
    },
    ("PUT", f"{V3}/directory/room/{{room_alias}}"): {"room_id": "!a:arbor.test"},
    ("PUT", f"{V3}/directory/list/room/{{room_id}}"): {"visibility": "private"},
    ("POST", f"{V3}/publicRooms"): {
        "limit": 3, "since": "x", "filter": {"generic_search_term": "t", "room_types": [None]},
        "include_all_networks": False, "third_party_instance_id": "i",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method and the pattern of its paths."""

    method: str
    pattern: str

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return [part[1:-1].removesuffix("?") for part in self.pattern.split("/") if part.startswith("{")]

    @property
    def takes_body(self) -> bool:
        """Whether it reads a body."""
        return (self.method, self.pattern) in EXAMPLES

    @property
    def open(self) -> bool:
        """Whether it needs no access token."""
        return (self.method, self.pattern) in OPEN_ROUTES

    @property
    def example(self) -> dict[str, Any]:
        """A good body."""
        return EXAMPLES[self.method, self.pattern]

    def path(self, values: Mapping[str, str]) -> str:
        """The path with these values, which are encoded here; `x` for what has none."""
        raw = {name: quote(value, safe="") for name, value in values.items()}
        return self.raw_path(raw)

    def raw_path(self, values: Mapping[str, str]) -> str:
        """The path with values that are encoded already (or wrongly)."""
        parts = [
            values.get(part[1:-1].removesuffix("?"), "x") if part.startswith("{") else part
            for part in self.pattern.split("/")
        ]
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.method} {self.pattern}"


def served_endpoints(folder: Path) -> list[Endpoint]:
    """Every route of the client and admin resources, without the older names of the same."""
    config = load_config(None, {}, {"server_name": "arbor.test", "data_dir": str(folder)})
    router = Router()
    for create in (create_clientapi, create_syncapi):
        # Made to be asked for their routes only: nothing is started.
        create(config).routes(router)
    return [Endpoint(route.method, route.pattern) for route in router.routes]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `json` is None where the body is none."""

    status: int
    json: Any
    headers: Mapping[str, str]

    @property
    def errcode(self) -> str | None:
        """The errcode of an error."""
        return self.json.get("errcode") if isinstance(self.json, dict) else None


async def ask(
    session: aiohttp.ClientSession,
    base_url: str,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: Any = None,
    data: bytes | None = None,
) -> Answer:
    """One request: `path` goes out byte for byte; `data` is the body as it stands, `body` is made JSON."""
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if body is not None:
        data = orjson.dumps(body)
    # yarl must not touch what is encoded already.
    url = URL(base_url + path, encoded=True)
    content = None if data is None else BytesIO(data)
    headers["Content-Length"] = str(len(data or b""))
    async with session.request(method, url, data=content, headers=headers) as response:
        raw = await response.read()
        try:
            value = orjson.loads(raw) if raw else None
        except orjson.JSONDecodeError:
            value = None
        return Answer(response.status, value, response.headers)


def is_clean_error(answer: Answer) -> bool:
    """Whether it is a 4xx in the standard form: an errcode and a text."""
    return (
        400 <= answer.status < 500
        and isinstance(answer.json, dict)
        and isinstance(answer.json.get("errcode"), str)
        and isinstance(answer.json.get("error"), str)
    )
