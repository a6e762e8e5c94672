"""The part of the Synapse-compatible admin API that is about accounts."""

from typing import Any, Final, cast, get_args

import msgspec
import orjson
from sqlalchemy import Connection

from clientapi.accounts.changes import AccountChanges
from clientapi.accounts.passwords import Passwords
from clientapi.accounts.registration import Registration
from clientapi.accounts.sessions import Session
from clientapi.http.account import DeactivateBody
from clientapi.http.admin_parameters import bool_of_query, existing_account, local_user, page_of_query
from clientapi.http.edge import EMPTY, Edge, convert, read_body
from clientapi.http.profile import check_profile_value
from clientapi.rooms.profile_updates import ProfileUpdates
from clientapi.storage import administration
from clientapi.storage.administration import Account, AccountFilter, Order
from servicekit.database import Database
from servicekit.errors import forbidden, invalid_param
from servicekit.http import Request, Response, Router, json_response

_ADMIN: Final = "/_synapse/admin"


class UserBody(msgspec.Struct):
    """`PUT /v2/users/{userId}`. What is absent stays; what other tools send besides is not looked at."""

    password: str | None = None
    logout_devices: bool = True
    displayname: str | msgspec.UnsetType | None = msgspec.UNSET
    avatar_url: str | msgspec.UnsetType | None = msgspec.UNSET
    admin: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None


class ResetPasswordBody(msgspec.Struct):
    """`POST /v1/reset_password/{userId}`."""

    new_password: str
    logout_devices: bool = True


class AdminUserEndpoints:
    """`/users`, `/deactivate`, `/reset_password`."""

    def __init__(
        self,
        edge: Edge,
        db: Database,
        changes: AccountChanges,
        registration: Registration,
        passwords: Passwords,
        updates: ProfileUpdates,
    ) -> None:
        self._edge = edge
        self._db = db
        self._changes = changes
        self._registration = registration
        self._passwords = passwords
        self._updates = updates

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", _ADMIN + "/v2/users", self.list_v2)
        router.add("GET", _ADMIN + "/v3/users", self.list_v3)
        router.add("GET", _ADMIN + "/v2/users/{user_id}", self.get_user)
        router.add("PUT", _ADMIN + "/v2/users/{user_id}", self.put_user)
        router.add("POST", _ADMIN + "/v1/deactivate/{user_id}", self.deactivate)
        router.add("POST", _ADMIN + "/v1/reset_password/{user_id}", self.reset_password)

    # -- reading
    # ---------------------------------------------------------------------------------------------------

    async def list_v2(self, request: Request) -> Response:
        """List accounts; deactivated ones only with `deactivated=true`."""
        await self._edge.authenticate_admin(request)
        return await self._list(request, None if bool_of_query(request, "deactivated") else False)

    async def list_v3(self, request: Request) -> Response:
        """List accounts; `deactivated` chooses one kind."""
        await self._edge.authenticate_admin(request)
        return await self._list(request, bool_of_query(request, "deactivated"))

    async def _list(self, request: Request, deactivated: bool | None) -> Response:
        query = request.query
        page = page_of_query(request)
        order = cast("Order", query.get("order_by", "name"))
        if order not in get_args(Order):
            raise invalid_param(f"order_by must be one of {', '.join(get_args(Order))}")
        wanted = AccountFilter(
            user_id_part=query.get("user_id"),
            name_part=query.get("name"),
            guests=None if bool_of_query(request, "guests") is not False else False,
            deactivated=deactivated,
            admins=bool_of_query(request, "admins"),
            locked=None if bool_of_query(request, "locked") else False,
        )
        await self._edge.sessions.flush_seen()
        found, total = await self._db.read(
            administration.load_accounts,
            wanted,
            order,
            backwards=page.backwards,
            start=page.start,
            limit=page.limit,
        )
        answer: dict[str, Any] = {"users": [_listed(account) for account in found], "total": total}
        if page.start + len(found) < total and found:
            answer["next_token"] = str(page.start + len(found))
        return json_response(answer)

    async def get_user(self, request: Request) -> Response:
        """Return an account."""
        await self._edge.authenticate_admin(request)
        return json_response(_details(await existing_account(self._db, self._local_user(request))))

    # -- changing
    # --------------------------------------------------------------------------------------------------

    async def put_user(self, request: Request) -> Response:
        """Make an account, or change one."""
        session = await self._edge.authenticate_admin(request)
        user_id = self._local_user(request)
        body = convert(await request.json(), UserBody)
        fields: dict[str, bytes | None] = {}
        for name, value in (("displayname", body.displayname), ("avatar_url", body.avatar_url)):
            if value is not msgspec.UNSET:
                check_profile_value(name, value)
                fields[name] = orjson.dumps(value) if value else None
        if body.password is not None:
            self._registration.check_new_password(body.password)
        account = await self._db.read(administration.load_account, user_id)
        if account is None:
            await self._create(user_id, body)
        elif account.deactivated and not (body.deactivated is None or body.deactivated):
            raise invalid_param("A deactivated account stays so")
        elif account.deactivated:
            return json_response(_details(account))
        else:
            self._check_own(session, user_id, body)
        password_hash = None
        if body.password is not None and account is not None:
            password_hash = await self._passwords.hash(body.password)
        await self._db.write(self._store, user_id, body, fields, password_hash)
        self._edge.sessions.forget_user(user_id)
        self._updates.wake()
        return json_response(
            _details(await existing_account(self._db, user_id)), 201 if account is None else 200
        )

    @staticmethod
    def _check_own(session: Session, user_id: str, body: UserBody) -> None:
        if user_id == session.user_id and (body.admin is False or body.deactivated or body.locked):
            raise invalid_param("You cannot take your own rights")

    async def _create(self, user_id: str, body: UserBody) -> None:
        localpart = user_id[1:].partition(":")[0]
        if self._registration.user_id_of(localpart) != user_id:
            raise invalid_param("Accounts are made on the first server name, in small letters")
        await self._registration.register(user_id, body.password, None, None, admin=body.admin or False)

    def _store(
        self,
        conn: Connection,
        user_id: str,
        body: UserBody,
        fields: dict[str, bytes | None],
        hashed: str | None,
    ) -> None:
        account = administration.load_account(conn, user_id)
        if account is None or account.deactivated:
            return
        if hashed is not None:
            self._changes.set_password(conn, user_id, hashed, body.logout_devices)
        for name, value_json in fields.items():
            self._changes.set_profile_field(conn, user_id, name, value_json)
        if body.admin is not None and body.admin is not account.admin:
            self._changes.set_flag(conn, user_id, "admin", body.admin)
        if body.locked is not None and body.locked is not account.locked:
            self._changes.set_flag(conn, user_id, "locked", body.locked)
        if body.deactivated:
            self._changes.deactivate(conn, user_id)

    async def deactivate(self, request: Request) -> Response:
        """End an account for good."""
        session = await self._edge.authenticate_admin(request)
        user_id = self._local_user(request)
        body = convert(await request.json(allow_empty=True), DeactivateBody)
        account = await existing_account(self._db, user_id)
        if user_id == session.user_id:
            raise invalid_param("You cannot take your own rights")
        if not account.deactivated:
            await self._db.write(self._changes.deactivate, user_id, erase=body.erase)
            self._edge.sessions.forget_user(user_id)
            self._updates.wake()
        elif body.erase:
            await self._db.write(self._changes.erase, user_id)
        return json_response({"id_server_unbind_result": "success"})

    async def reset_password(self, request: Request) -> Response:
        """Set somebody's password."""
        session = await self._edge.authenticate_admin(request)
        user_id = self._local_user(request)
        body = await read_body(request, ResetPasswordBody)
        password = self._registration.check_new_password(body.new_password)
        if (await existing_account(self._db, user_id)).deactivated:
            raise forbidden("A deactivated account has no password")
        hashed = await self._passwords.hash(password)
        keep = session.device_id if session.user_id == user_id else None
        await self._db.write(self._changes.set_password, user_id, hashed, body.logout_devices, keep)
        self._edge.sessions.forget_user(user_id)
        return EMPTY

    def _local_user(self, request: Request) -> str:
        return local_user(self._edge.config, request.path_params["user_id"])


def _shared(account: Account) -> dict[str, Any]:
    def profile(value_json: bytes | None) -> Any:
        return None if value_json is None else orjson.loads(value_json)

    return {
        "name": account.user_id,
        "displayname": profile(account.display_name_json),
        "avatar_url": profile(account.avatar_url_json),
        "admin": account.admin,
        "deactivated": account.deactivated,
        "locked": account.locked,
        "erased": account.erased_ms is not None,
        "shadow_banned": False,
        "user_type": None,
        "last_seen_ts": account.last_seen_ms,
    }


def _listed(account: Account) -> dict[str, Any]:
    return _shared(account) | {"is_guest": account.guest, "creation_ts": account.created_ms}


def _details(account: Account) -> dict[str, Any]:
    # Here, other than in the list, tools expect seconds.
    return _shared(account) | {
        "is_guest": account.guest,
        "suspended": account.suspended,
        "creation_ts": account.created_ms // 1000,
        "threepids": [],
        "external_ids": [],
        "appservice_id": None,
    }
