"""Server administration of the specification: who is it, locking and suspending accounts (v1.18)."""

from typing import Any, Literal

from sqlalchemy import Connection

from clientapi.accounts.changes import AccountChanges
from clientapi.http.edge import Edge, check_user_id
from clientapi.storage import administration, users
from clientapi.storage.administration import Account
from matrixlib.identifiers import server_name_of
from servicekit.database import Database
from servicekit.errors import bad_json, forbidden, invalid_param, missing_param, not_found
from servicekit.http import Handler, Request, Response, Router, json_response

Kind = Literal["locked", "suspended"]


class ModerationEndpoints:
    """`/admin/whois`, `/admin/lock`, `/admin/suspend`."""

    def __init__(self, edge: Edge, db: Database, changes: AccountChanges) -> None:
        self._edge = edge
        self._db = db
        self._changes = changes

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/v3/admin/whois/{user_id}", self.get_whois)
        router.add("GET", "/_synapse/admin/v1/whois/{user_id}", self.get_whois)
        kinds: tuple[tuple[str, Kind], ...] = (("lock", "locked"), ("suspend", "suspended"))
        for name, kind in kinds:
            path = f"/_matrix/client/v1/admin/{name}/{{user_id}}"
            unstable = [f"/_matrix/client/unstable/uk.timedout.msc4323/admin/{name}/{{user_id}}"]
            router.add("GET", path, self._getter(kind), aliases=unstable)
            router.add("PUT", path, self._setter(kind), aliases=unstable)

    async def get_whois(self, request: Request) -> Response:
        """Say where a user was last seen, to that user and to administrators."""
        session = await self._edge.authenticate(request)
        user_id = request.path_params["user_id"]
        if user_id != session.user_id and not session.admin:
            # Before any look-up: nobody learns here who exists.
            raise forbidden("You are not a server administrator")
        user_id = self._local_user(user_id)
        await self._edge.sessions.flush_seen()
        if not await self._db.read(users.user_exists, user_id):
            raise not_found("User not found")
        devices: dict[str, Any] = {}
        for device in await self._db.read(users.load_devices, [user_id]):
            connections = []
            if device.last_seen_ms is not None:
                connections.append({"ip": device.last_seen_ip, "last_seen": device.last_seen_ms})
            devices[device.device_id] = {"sessions": [{"connections": connections}]}
        return json_response({"user_id": user_id, "devices": devices})

    def _getter(self, kind: Kind) -> Handler:
        async def get(request: Request) -> Response:
            await self._edge.authenticate_admin(request)
            account = await self._target(request)
            return json_response({kind: getattr(account, kind)})

        return get

    def _setter(self, kind: Kind) -> Handler:
        async def put(request: Request) -> Response:
            session = await self._edge.authenticate_admin(request)
            body = await request.json()
            if kind not in body:
                raise missing_param(f"Missing {kind}")
            value = body[kind]
            if not isinstance(value, bool):
                raise bad_json(f"{kind} is not true or false")
            if request.path_params["user_id"] == session.user_id:
                raise forbidden("You cannot do this to yourself")
            account = await self._target(request)
            await self._db.write(self._store, account.user_id, kind, value)
            self._edge.sessions.forget_user(account.user_id)
            return json_response({kind: value})

        return put

    def _store(self, conn: Connection, user_id: str, kind: Kind, value: bool) -> None:
        self._changes.set_flag(conn, user_id, kind, value)

    async def _target(self, request: Request) -> Account:
        user_id = self._local_user(request.path_params["user_id"])
        account = await self._db.read(administration.load_account, user_id)
        if account is None or account.deactivated:
            raise not_found("User not found")
        if account.admin:
            raise forbidden("This is another administrator")
        return account

    def _local_user(self, user_id: str) -> str:
        user_id = check_user_id(user_id)
        if not self._edge.config.is_local(server_name_of(user_id)):
            raise invalid_param("User does not belong to the local server")
        return user_id
