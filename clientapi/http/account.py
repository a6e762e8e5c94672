"""The account itself: who am I, change of password, deactivation (spec, "Account management")."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from clientapi.accounts.logins import PasswordLogins
from clientapi.accounts.passwords import Passwords
from clientapi.accounts.registration import Registration
from clientapi.accounts.sessions import Session
from clientapi.accounts.tell import Teller, account_changed
from clientapi.accounts.uia import UserInteractiveAuth
from clientapi.clock import Clock
from clientapi.http.edge import EMPTY, Edge, answer_challenges, convert
from clientapi.rooms.profile_updates import ProfileUpdates
from clientapi.storage import settings, tokens, users
from servicekit.database import Database
from servicekit.http import Request, Response, Router, json_response

PASSWORD_FLOW = [["m.login.password"]]


class PasswordBody(msgspec.Struct):
    """`POST /account/password`."""

    new_password: str | None = None
    logout_devices: bool = True


class DeactivateBody(msgspec.Struct):
    """`POST /account/deactivate`."""

    erase: bool = False


class AccountEndpoints:
    """`/account/…`."""

    def __init__(
        self,
        edge: Edge,
        db: Database,
        teller: Teller,
        logins: PasswordLogins,
        registration: Registration,
        passwords: Passwords,
        uia: UserInteractiveAuth,
        profile_updates: ProfileUpdates,
        clock: Clock,
    ) -> None:
        self._edge = edge
        self._db = db
        self._teller = teller
        self._logins = logins
        self._registration = registration
        self._passwords = passwords
        self._uia = uia
        self._profile_updates = profile_updates
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/v3/account/whoami", self.whoami)
        router.add("POST", "/_matrix/client/v3/account/password", answer_challenges(self.change_password))
        router.add("POST", "/_matrix/client/v3/account/deactivate", answer_challenges(self.deactivate))
        router.add("GET", "/_matrix/client/v3/account/3pid", self.get_third_party_ids)

    async def whoami(self, request: Request) -> Response:
        """Say whose token it is."""
        session = await self._edge.authenticate(request)
        answer: dict[str, Any] = {"user_id": session.user_id, "is_guest": session.guest}
        if session.device_id:
            answer["device_id"] = session.device_id
        return json_response(answer)

    async def get_third_party_ids(self, request: Request) -> Response:
        """List addresses bound to the account: there are none yet."""
        await self._edge.authenticate(request)
        return json_response({"threepids": []})

    async def change_password(self, request: Request) -> Response:
        """Set a new password, and log out the other devices unless asked not to."""
        session = await self._edge.authenticate_writer(request)
        raw = await request.json()
        body = convert(raw, PasswordBody)
        if body.new_password is not None:
            self._registration.check_new_password(body.new_password)
        await self._prove(raw, session, "change password")
        password_hash = await self._passwords.hash(self._registration.check_new_password(body.new_password))
        await self._db.write(self._store_password, session, password_hash, body.logout_devices)
        self._edge.sessions.forget_user(session.user_id)
        return EMPTY

    def _store_password(
        self, conn: Connection, session: Session, password_hash: str, logout_devices: bool
    ) -> None:
        users.store_password(conn, session.user_id, password_hash)
        if logout_devices:
            self._edge.sessions.end_devices(conn, session.user_id, None, session.device_id)

    async def deactivate(self, request: Request) -> Response:
        """End the account for good: sessions, password, profile; it leaves its rooms."""
        session = await self._edge.authenticate(request)
        raw = await request.json(allow_empty=True)
        convert(raw, DeactivateBody)
        await self._prove(raw, session, "deactivate")
        await self._db.write(self._store_deactivated, session.user_id)
        self._edge.sessions.forget_user(session.user_id)
        self._profile_updates.wake()
        return json_response({"id_server_unbind_result": "success"})

    def _store_deactivated(self, conn: Connection, user_id: str) -> None:
        self._edge.sessions.end_devices(conn, user_id, None)
        users.store_deactivated(conn, user_id)
        settings.delete_device_pushers(conn, user_id, None)
        users.store_profile_update(conn, user_id, self._clock(), leave_rooms=True)
        self._teller.tell_user(conn, "user.device", user_id, [account_changed(access=True, profile=True)])

    async def _prove(self, raw: dict[str, Any], session: Session, operation: str) -> None:
        stages = {"m.login.password": self._logins.stage_for(session.user_id)}
        done = await self._uia.check(raw.get("auth"), operation, session.user_id, PASSWORD_FLOW, stages)
        await self._db.write(tokens.delete_uia_session, done.session_id)
