"""Push rules and pushers (client-server API, "Push Notifications")."""

from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from sqlalchemy import Connection

from clientapi.accounts import push_rules
from clientapi.accounts.account_data import PUSH_RULES, AccountDataStore
from clientapi.accounts.push_rules import Ruleset
from clientapi.accounts.sessions import Session
from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, convert
from clientapi.storage import settings
from servicekit.errors import MatrixError, bad_json, invalid_param, missing_param, too_much
from servicekit.http import Request, Response, Router, json_response

MAX_PUSHERS = 100
MAX_PUSHKEY_BYTES = 512
MAX_APP_ID_CHARS = 64


class PusherBody(msgspec.Struct):
    """`POST /pushers/set`. A null kind deletes."""

    app_id: str
    pushkey: str
    kind: str | None
    app_display_name: str | None = None
    device_display_name: str | None = None
    lang: str | None = None
    profile_tag: str | None = None
    data: dict[str, Any] | None = None
    append: bool = False


class PushRuleEndpoints:
    """`/pushrules/…`, `/pushers`."""

    def __init__(self, edge: Edge, store: AccountDataStore, clock: Clock) -> None:
        self._edge = edge
        self._store = store
        self._db = store.db
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        base = "/_matrix/client/v3/pushrules"
        router.add("GET", base, self.get_all)
        router.add("GET", base + "/", self.get_all)
        router.add("GET", base + "/global", self.get_global)
        router.add("GET", base + "/global/", self.get_global)
        router.add("GET", base + "/global/{kind}", self.get_kind)
        router.add("GET", base + "/global/{kind}/", self.get_kind)
        rule = base + "/global/{kind}/{rule_id}"
        router.add("GET", rule, self.get_rule)
        router.add("PUT", rule, self.put_rule)
        router.add("DELETE", rule, self.delete_rule)
        router.add("GET", rule + "/enabled", self.get_enabled)
        router.add("PUT", rule + "/enabled", self.put_enabled)
        router.add("GET", rule + "/actions", self.get_actions)
        router.add("PUT", rule + "/actions", self.put_actions)
        router.add("GET", "/_matrix/client/v3/pushers", self.get_pushers)
        router.add("POST", "/_matrix/client/v3/pushers/set", self.set_pusher)

    async def get_all(self, request: Request) -> Response:
        """Return all rules."""
        return json_response({"global": await self._load(request)})

    async def get_global(self, request: Request) -> Response:
        """Return all rules of the only scope."""
        return json_response(await self._load(request))

    async def get_kind(self, request: Request) -> Response:
        """Return the rules of a kind."""
        ruleset = await self._load(request)
        return json_response(push_rules.rules_of(ruleset, request.path_params["kind"]))

    async def get_rule(self, request: Request) -> Response:
        """Return a rule."""
        return json_response(await self._find(request))

    async def get_enabled(self, request: Request) -> Response:
        """Say whether a rule is on."""
        return json_response({"enabled": (await self._find(request))["enabled"]})

    async def get_actions(self, request: Request) -> Response:
        """Return what a rule does."""
        return json_response({"actions": (await self._find(request))["actions"]})

    async def put_rule(self, request: Request) -> Response:
        """Add or replace a rule."""
        session = await self._edge.authenticate_setting(request)
        kind, rule_id = request.path_params["kind"], request.path_params["rule_id"]
        before, after = request.query.get("before"), request.query.get("after")
        body = await request.json()
        return await self._change(
            session, lambda ruleset: push_rules.put_rule(ruleset, kind, rule_id, body, before, after)
        )

    async def delete_rule(self, request: Request) -> Response:
        """Remove a rule."""
        session = await self._edge.authenticate_setting(request)
        kind, rule_id = request.path_params["kind"], request.path_params["rule_id"]
        return await self._change(session, lambda ruleset: push_rules.delete_rule(ruleset, kind, rule_id))

    async def put_enabled(self, request: Request) -> Response:
        """Switch a rule on or off."""
        session = await self._edge.authenticate_setting(request)
        kind, rule_id = request.path_params["kind"], request.path_params["rule_id"]
        enabled = (await request.json()).get("enabled")
        if enabled is None:
            raise missing_param("Missing enabled")
        if not isinstance(enabled, bool):
            raise bad_json("enabled is not true or false")
        return await self._change(
            session, lambda ruleset: push_rules.set_enabled(ruleset, kind, rule_id, enabled)
        )

    async def put_actions(self, request: Request) -> Response:
        """Change what a rule does."""
        session = await self._edge.authenticate_setting(request)
        kind, rule_id = request.path_params["kind"], request.path_params["rule_id"]
        body = await request.json()
        if "actions" not in body:
            raise missing_param("Missing actions")
        return await self._change(
            session, lambda ruleset: push_rules.set_actions(ruleset, kind, rule_id, body["actions"])
        )

    async def _load(self, request: Request) -> Ruleset:
        session = await self._edge.authenticate(request)
        stored = await self._db.read(settings.load_account_data, session.user_id, "", PUSH_RULES)
        return push_rules.load_ruleset(session.user_id, stored)

    async def _find(self, request: Request) -> push_rules.Rule:
        ruleset = await self._load(request)
        return push_rules.find_rule(ruleset, request.path_params["kind"], request.path_params["rule_id"])

    async def _change(self, session: Session, change: Callable[[Ruleset], None]) -> Response:
        await self._db.write(self._store_change, session.user_id, change)
        return EMPTY

    def _store_change(self, conn: Connection, user_id: str, change: Callable[[Ruleset], None]) -> None:
        stored = settings.load_account_data(conn, user_id, "", PUSH_RULES)
        ruleset = push_rules.load_ruleset(user_id, stored)
        change(ruleset)
        self._store.store(conn, user_id, "", PUSH_RULES, push_rules.dump_ruleset(ruleset))

    async def get_pushers(self, request: Request) -> Response:
        """List the user's pushers."""
        session = await self._edge.authenticate(request)
        pushers = await self._db.read(settings.load_pushers, session.user_id)
        return json_response({"pushers": [orjson.loads(pusher) for pusher in pushers]})

    async def set_pusher(self, request: Request) -> Response:
        """Set or delete a pusher."""
        session = await self._edge.authenticate_setting(request)
        raw = await request.json()
        if "kind" not in raw:
            raise missing_param("Missing kind")
        body = convert(raw, PusherBody)
        if len(body.app_id) > MAX_APP_ID_CHARS:
            raise invalid_param(f"app_id has at most {MAX_APP_ID_CHARS} characters")
        if len(body.pushkey.encode()) > MAX_PUSHKEY_BYTES:
            raise invalid_param(f"pushkey has at most {MAX_PUSHKEY_BYTES} bytes")
        if body.kind is None:
            await self._db.write(settings.delete_pusher, session.user_id, body.app_id, body.pushkey)
            return EMPTY
        pusher_json = orjson.dumps(_checked_pusher(body))
        await self._db.write(self._store_pusher, session.user_id, session.device_id, body, pusher_json)
        return EMPTY

    def _store_pusher(
        self, conn: Connection, user_id: str, device_id: str, body: PusherBody, pusher_json: bytes
    ) -> None:
        if settings.count_other_pushers(conn, user_id, body.app_id, body.pushkey) >= MAX_PUSHERS:
            raise too_much(f"A user has at most {MAX_PUSHERS} pushers")
        settings.store_pusher(
            conn,
            user_id,
            device_id,
            body.app_id,
            body.pushkey,
            pusher_json,
            self._clock(),
            append=body.append,
        )


def _checked_pusher(body: PusherBody) -> dict[str, Any]:
    for name in ("app_display_name", "device_display_name", "lang", "data"):
        if getattr(body, name) is None:
            raise missing_param(f"Missing {name}")
    if body.kind not in ("http", "email"):
        raise invalid_param("kind must be http, email or null")
    data = body.data or {}
    if body.kind == "http":
        url = data.get("url")
        if not isinstance(url, str):
            raise missing_param("Missing data.url")
        if not url.startswith(("https://", "http://")) or not url.partition("://")[2].partition("?")[
            0
        ].endswith("/_matrix/push/v1/notify"):
            raise invalid_param("data.url must be an HTTP URL with the path /_matrix/push/v1/notify")
    if not isinstance(data.get("format", ""), str):
        raise bad_json("data.format is not a string")
    if len(orjson.dumps(data)) > 8192:
        raise MatrixError("M_TOO_LARGE", 413, "data is too large")
    pusher = msgspec.to_builtins(body)
    del pusher["append"]
    return {name: value for name, value in pusher.items() if value is not None}
