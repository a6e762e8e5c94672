"""Devices (client-server API, "Device Management")."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from clientapi.accounts.logins import PasswordLogins
from clientapi.accounts.sessions import Session
from clientapi.accounts.tell import Teller, device_changed
from clientapi.accounts.uia import UserInteractiveAuth
from clientapi.http.account import PASSWORD_FLOW
from clientapi.http.edge import EMPTY, Edge, answer_challenges, convert, read_body
from clientapi.http.login import check_device
from clientapi.storage import users
from servicekit.database import Database
from servicekit.errors import not_found
from servicekit.http import Request, Response, Router, json_response


class DeviceBody(msgspec.Struct):
    """`PUT /devices/{deviceId}`."""

    display_name: str | None = None


class DeleteDevicesBody(msgspec.Struct):
    """`POST /delete_devices`."""

    devices: list[str]


class DeviceEndpoints:
    """`/devices`, `/delete_devices`."""

    def __init__(
        self, edge: Edge, db: Database, teller: Teller, logins: PasswordLogins, uia: UserInteractiveAuth
    ) -> None:
        self._edge = edge
        self._db = db
        self._teller = teller
        self._logins = logins
        self._uia = uia

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/v3/devices", self.list_devices)
        router.add("GET", "/_matrix/client/v3/devices/{device_id}", self.get_device)
        router.add("PUT", "/_matrix/client/v3/devices/{device_id}", self.rename)
        router.add("DELETE", "/_matrix/client/v3/devices/{device_id}", answer_challenges(self.delete))
        router.add("POST", "/_matrix/client/v3/delete_devices", answer_challenges(self.delete_many))

    async def list_devices(self, request: Request) -> Response:
        """List the user's devices."""
        session = await self._edge.authenticate(request)
        await self._edge.sessions.flush_seen()
        devices = await self._db.read(users.load_devices, [session.user_id])
        return json_response({"devices": [device_as_json(device) for device in devices]})

    async def get_device(self, request: Request) -> Response:
        """Return one of the user's devices."""
        session = await self._edge.authenticate(request)
        await self._edge.sessions.flush_seen()
        device = await self._db.read(users.load_device, session.user_id, request.path_params["device_id"])
        if device is None:
            raise not_found("There is no such device")
        return json_response(device_as_json(device))

    async def rename(self, request: Request) -> Response:
        """Give a device a name."""
        session = await self._edge.authenticate_setting(request)
        body = await read_body(request, DeviceBody)
        check_device(None, body.display_name)
        device_id = request.path_params["device_id"]
        await self._db.write(store_device_name, self._teller, session.user_id, device_id, body.display_name)
        return EMPTY

    async def delete(self, request: Request) -> Response:
        """End a device."""
        session = await self._edge.authenticate(request)
        raw = await request.json(allow_empty=True)
        device_id = request.path_params["device_id"]
        return await self._delete(session, raw, [device_id], f"delete device {device_id}")

    async def delete_many(self, request: Request) -> Response:
        """End several devices."""
        session = await self._edge.authenticate(request)
        raw = await request.json()
        device_ids = sorted(set(convert(raw, DeleteDevicesBody).devices))
        return await self._delete(session, raw, device_ids, "delete devices " + "\n".join(device_ids))

    async def _delete(
        self, session: Session, raw: dict[str, Any], device_ids: list[str], operation: str
    ) -> Response:
        stages = {"m.login.password": self._logins.stage_for(session.user_id)}
        done = await self._uia.check(raw.get("auth"), operation, session.user_id, PASSWORD_FLOW, stages)
        await self._edge.sessions.delete_devices(session.user_id, device_ids)
        await self._uia.end(done.session_id)
        return EMPTY


def store_device_name(
    conn: Connection, teller: Teller, user_id: str, device_id: str, display_name: str | None
) -> None:
    """Name a device and tell of it; None leaves its name. Raises MatrixError M_NOT_FOUND."""
    if display_name is None:
        if users.load_device(conn, user_id, device_id) is None:
            raise not_found("There is no such device")
        return
    if not users.rename_device(conn, user_id, device_id, display_name):
        raise not_found("There is no such device")
    teller.tell_user(conn, "user.device", user_id, [device_changed(device_id, display_name)])


def device_as_json(device: users.Device) -> dict[str, Any]:
    """Return a device as clients get it."""
    # NOTSPEC: null where the specification leaves a key out: there are clients that demand every key.
    return {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ts": device.last_seen_ms,
        "last_seen_ip": device.last_seen_ip,
    }
