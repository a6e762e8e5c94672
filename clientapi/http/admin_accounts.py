"""The part of the Synapse-compatible admin API that looks into one account: devices, rooms, settings, flags."""

from typing import Any, Final

import msgspec
import orjson
from sqlalchemy import Connection

from clientapi.accounts.changes import AccountChanges
from clientapi.accounts.tell import Teller, device_changed
from clientapi.clock import Clock
from clientapi.http.admin_parameters import existing_account, local_user
from clientapi.http.devices import DeleteDevicesBody, DeviceBody, device_as_json, store_device_name
from clientapi.http.edge import EMPTY, Edge, read_body
from clientapi.http.login import check_device
from clientapi.rooms.parts import Rooms
from clientapi.storage import settings, users
from clientapi.storage.administration import Account, Flag
from clientapi.storage.users import Device
from servicekit.errors import invalid_param, not_found
from servicekit.http import Request, Response, Router, json_response

_USER_V1: Final = "/_synapse/admin/v1/users/{user_id}"
_USER_V2: Final = "/_synapse/admin/v2/users/{user_id}"


class NewDeviceBody(msgspec.Struct):
    """`POST /v2/users/{userId}/devices`."""

    device_id: str
    display_name: str | None = None


class AdminFlagBody(msgspec.Struct):
    """`PUT /v1/users/{userId}/admin`."""

    admin: bool


class SuspendBody(msgspec.Struct):
    """`PUT /v1/suspend/{userId}`."""

    suspend: bool


class AdminAccountEndpoints:
    """`/users/{userId}/…`, `/suspend/{userId}`."""

    def __init__(
        self, edge: Edge, rooms: Rooms, teller: Teller, changes: AccountChanges, clock: Clock
    ) -> None:
        self._edge = edge
        self._db = rooms.db
        self._queries = rooms.sender.queries
        self._teller = teller
        self._changes = changes
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", _USER_V2 + "/devices", self.list_devices)
        router.add("POST", _USER_V2 + "/devices", self.make_device)
        device = _USER_V2 + "/devices/{device_id}"
        router.add("GET", device, self.get_device)
        router.add("PUT", device, self.rename_device)
        router.add("DELETE", device, self.delete_device)
        router.add("POST", _USER_V2 + "/delete_devices", self.delete_devices)
        router.add("GET", _USER_V1 + "/joined_rooms", self.list_joined_rooms)
        router.add("GET", _USER_V1 + "/memberships", self.list_memberships)
        router.add("GET", _USER_V1 + "/pushers", self.list_pushers)
        router.add("GET", _USER_V1 + "/accountdata", self.get_account_data)
        router.add("GET", _USER_V1 + "/admin", self.get_admin)
        router.add("PUT", _USER_V1 + "/admin", self.put_admin)
        router.add("PUT", "/_synapse/admin/v1/suspend/{user_id}", self.put_suspended)

    # -- devices
    # ---------------------------------------------------------------------------------------------------

    async def list_devices(self, request: Request) -> Response:
        """List an account's devices."""
        user_id = (await self._account(request)).user_id
        await self._edge.sessions.flush_seen()
        found = await self._db.read(users.load_devices, [user_id])
        return json_response({"devices": [_device(device) for device in found], "total": len(found)})

    async def get_device(self, request: Request) -> Response:
        """Return a device."""
        user_id = (await self._account(request)).user_id
        await self._edge.sessions.flush_seen()
        device = await self._db.read(users.load_device, user_id, request.path_params["device_id"])
        if device is None:
            raise not_found("Device not found")
        return json_response(_device(device))

    async def make_device(self, request: Request) -> Response:
        """Make a device without a session: one that logs in under its id takes it over."""
        account = await self._account(request)
        body = await read_body(request, NewDeviceBody)
        check_device(body.device_id, body.display_name)
        if account.deactivated:
            raise invalid_param("A deactivated account has no devices")
        await self._db.write(self._store_device, account.user_id, body.device_id, body.display_name)
        return json_response({}, 201)

    def _store_device(self, conn: Connection, user_id: str, device_id: str, name: str | None) -> None:
        if users.store_device(conn, user_id, device_id, name, self._clock()):
            self._teller.tell_user(conn, "user.device", user_id, [device_changed(device_id, name)])

    async def rename_device(self, request: Request) -> Response:
        """Give a device a name."""
        user_id = (await self._account(request)).user_id
        body = await read_body(request, DeviceBody)
        check_device(None, body.display_name)
        device_id = request.path_params["device_id"]
        await self._db.write(store_device_name, self._teller, user_id, device_id, body.display_name)
        return EMPTY

    async def delete_device(self, request: Request) -> Response:
        """End a device with its sessions."""
        user_id = (await self._account(request)).user_id
        await self._edge.sessions.delete_devices(user_id, [request.path_params["device_id"]])
        return EMPTY

    async def delete_devices(self, request: Request) -> Response:
        """End several devices."""
        user_id = (await self._account(request)).user_id
        body = await read_body(request, DeleteDevicesBody)
        await self._edge.sessions.delete_devices(user_id, body.devices)
        return EMPTY

    # -- rooms and settings
    # ----------------------------------------------------------------------------------------

    async def list_joined_rooms(self, request: Request) -> Response:
        """List the rooms that a user is in."""
        user_id = (await self._account(request)).user_id
        found = await self._queries.memberships([user_id], kinds=["join"])
        rooms = sorted(item.room_id for item in found)
        return json_response({"joined_rooms": rooms, "total": len(rooms)})

    async def list_memberships(self, request: Request) -> Response:
        """Say what a user is in every room that they ever had to do with."""
        user_id = (await self._account(request)).user_id
        found = await self._queries.memberships([user_id])
        return json_response({"memberships": {item.room_id: item.membership.membership for item in found}})

    async def list_pushers(self, request: Request) -> Response:
        """List a user's pushers."""
        user_id = (await self._account(request)).user_id
        found = [orjson.loads(pusher) for pusher in await self._db.read(settings.load_pushers, user_id)]
        return json_response({"pushers": found, "total": len(found)})

    async def get_account_data(self, request: Request) -> Response:
        """Return all account data of a user."""
        user_id = (await self._account(request)).user_id
        everywhere: dict[str, Any] = {}
        in_rooms: dict[str, dict[str, Any]] = {}
        for room_id, type_, content in await self._db.read(settings.load_all_account_data, user_id):
            where = in_rooms.setdefault(room_id, {}) if room_id else everywhere
            where[type_] = orjson.loads(content)
        return json_response({"account_data": {"global": everywhere, "rooms": in_rooms}})

    # -- flags
    # ----------------------------------------------------------------------------------------------------

    async def get_admin(self, request: Request) -> Response:
        """Say whether a user is an administrator."""
        return json_response({"admin": (await self._account(request)).admin})

    async def put_admin(self, request: Request) -> Response:
        """Make a user an administrator, or take that back."""
        account = await self._account(request)
        body = await read_body(request, AdminFlagBody)
        if not body.admin and await self._is_own(request, account):
            raise invalid_param("You cannot take your own rights")
        await self._set_flag(account, "admin", body.admin)
        return EMPTY

    async def put_suspended(self, request: Request) -> Response:
        """Suspend an account, or take that back."""
        account = await self._account(request)
        body = await read_body(request, SuspendBody)
        if await self._is_own(request, account):
            raise invalid_param("You cannot do this to yourself")
        await self._set_flag(account, "suspended", body.suspend)
        return json_response({f"user_{account.user_id}_suspended": body.suspend})

    async def _set_flag(self, account: Account, flag: Flag, value: bool) -> None:
        if account.deactivated:
            raise invalid_param("A deactivated account stays as it is")
        await self._db.write(self._changes.set_flag, account.user_id, flag, value)
        self._edge.sessions.forget_user(account.user_id)

    async def _is_own(self, request: Request, account: Account) -> bool:
        return (await self._edge.authenticate_admin(request)).user_id == account.user_id

    async def _account(self, request: Request) -> Account:
        """Return the account that the path names, to an administrator: nothing is looked up before.

        Raises:
            MatrixError: as `Edge.authenticate_admin`; M_INVALID_PARAM, M_NOT_FOUND.
        """
        await self._edge.authenticate_admin(request)
        user_id = local_user(self._edge.config, request.path_params["user_id"])
        return await existing_account(self._db, user_id)


def _device(device: Device) -> dict[str, Any]:
    return {"user_id": device.user_id, **device_as_json(device), "last_seen_user_agent": None}
