"""The account itself: who am I, change of password, deactivation (spec, "Account management")."""

from typing import Any

import msgspec

from clientapi.accounts.changes import AccountChanges
from clientapi.accounts.logins import PasswordLogins
from clientapi.accounts.passwords import Passwords
from clientapi.accounts.registration import Registration
from clientapi.accounts.sessions import Session
from clientapi.accounts.uia import UserInteractiveAuth
from clientapi.http.edge import EMPTY, Edge, answer_challenges, convert
from clientapi.rooms.profile_updates import ProfileUpdates
from clientapi.storage import tokens
from servicekit.database import Database
from servicekit.http import Request, Response, Router, json_response

PASSWORD_FLOW = [["m.login.password"]]


class PasswordBody(msgspec.Struct):
    """`POST /account/password`."""

    new_password: str | None = None
    logout_devices: bool = True


class DeactivateBody(msgspec.Struct):
    """`POST /account/deactivate`, and what administrators send to end an account."""

    erase: bool = False


class AccountEndpoints:
    """`/account/…`."""

    def __init__(
        self,
        edge: Edge,
        db: Database,
        changes: AccountChanges,
        logins: PasswordLogins,
        registration: Registration,
        passwords: Passwords,
        uia: UserInteractiveAuth,
        profile_updates: ProfileUpdates,
    ) -> None:
        self._edge = edge
        self._db = db
        self._changes = changes
        self._logins = logins
        self._registration = registration
        self._passwords = passwords
        self._uia = uia
        self._profile_updates = profile_updates

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
        session = await self._edge.authenticate_no_guest(request)
        raw = await request.json()
        body = convert(raw, PasswordBody)
        if body.new_password is not None:
            self._registration.check_new_password(body.new_password)
        await self._prove(raw, session, "change password")
        password_hash = await self._passwords.hash(self._registration.check_new_password(body.new_password))
        await self._db.write(
            self._changes.set_password,
            session.user_id,
            password_hash,
            body.logout_devices,
            session.device_id,
        )
        self._edge.sessions.forget_user(session.user_id)
        return EMPTY

    async def deactivate(self, request: Request) -> Response:
        """End the account for good: sessions, password, profile; it leaves its rooms."""
        session = await self._edge.authenticate(request)
        raw = await request.json(allow_empty=True)
        body = convert(raw, DeactivateBody)
        await self._prove(raw, session, "deactivate")
        await self._db.write(self._changes.deactivate, session.user_id, erase=body.erase)
        self._edge.sessions.forget_user(session.user_id)
        self._profile_updates.wake()
        return json_response({"id_server_unbind_result": "success"})

    async def _prove(self, raw: dict[str, Any], session: Session, operation: str) -> None:
        stages = {"m.login.password": self._logins.stage_for(session.user_id)}
        done = await self._uia.check(raw.get("auth"), operation, session.user_id, PASSWORD_FLOW, stages)
        await self._db.write(tokens.delete_uia_session, done.session_id)
