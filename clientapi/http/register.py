"""Registration (client-server API, "Account registration"), and the shared-secret form of existing tools."""

from typing import Any

import msgspec

from clientapi.accounts.registration import DUMMY, REGISTRATION_TOKEN, Registration
from clientapi.accounts.uia import UserInteractiveAuth, dummy_stage
from clientapi.http.edge import Edge, answer_challenges, convert, read_body
from clientapi.http.login import check_device, login_answer
from servicekit.errors import MatrixError, forbidden, invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response


class RegisterBody(msgspec.Struct):
    """`POST /register`."""

    username: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool = False
    refresh_token: bool = False
    type: str | None = None
    guest_access_token: str | None = None


class SharedSecretBody(msgspec.Struct):
    """`POST /_synapse/admin/v1/register`."""

    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    displayname: str | None = None
    inhibit_login: bool = False


class RegisterEndpoints:
    """`/register` and what belongs to it."""

    def __init__(self, edge: Edge, registration: Registration, uia: UserInteractiveAuth) -> None:
        self._edge = edge
        self._registration = registration
        self._uia = uia

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/_matrix/client/v3/register", answer_challenges(self.register))
        router.add("GET", "/_matrix/client/v3/register/available", self.check_available)
        router.add(
            "GET",
            "/_matrix/client/v1/register/m.login.registration_token/validity",
            self.check_token,
            aliases=[
                "/_matrix/client/unstable/org.matrix.msc3231/register/org.matrix.msc3231.login.registration_token/validity"
            ],
        )
        router.add("GET", "/_synapse/admin/v1/register", self.get_nonce)
        router.add("POST", "/_synapse/admin/v1/register", self.register_with_secret)

    async def register(self, request: Request) -> Response:
        """Make an account."""
        raw = await request.json(allow_empty=True)
        kind = request.query.get("kind", "user")
        if kind == "guest":
            return await self._register_guest(request, raw)
        if kind != "user":
            raise invalid_param("The query parameter kind must be user or guest")
        registration = self._registration
        registration.check_open()
        body = convert(raw, RegisterBody)
        if body.type == "m.login.application_service":
            raise MatrixError("M_UNKNOWN", 400, "This server has no application services")
        check_device(body.device_id, body.initial_device_display_name)
        user_id = guest = None
        if body.guest_access_token is not None:
            user_id = guest = await self._guest(body.guest_access_token, body.username)
        elif body.username is not None:
            user_id = await registration.check_available(body.username)
        if body.password is not None:
            registration.check_new_password(body.password)
        auth = raw.get("auth")
        self._edge.asking.check(request.remote)
        if auth is not None or body.username is not None:
            # The first, empty question for the flows is no registration.
            self._edge.registrations.check(request.remote, take=auth is not None)
        # Bound to no name: clients ask for the flows before anybody has chosen one, and an account that
        # exists is never touched, since its id is taken.
        done = await self._uia.check(
            auth,
            "register",
            "",
            registration.flows,
            {DUMMY: dummy_stage, REGISTRATION_TOKEN: registration.token_stage},
        )
        password = registration.check_new_password(body.password)
        user_id = user_id or registration.new_user_id()
        login = None
        if not body.inhibit_login:
            login = self._edge.sessions.prepare(user_id, body.device_id, body.refresh_token)
        session = await registration.register(
            user_id, password, login, body.initial_device_display_name, uia=done, upgrade=guest is not None
        )
        if guest is not None:
            self._edge.sessions.forget_user(guest)
        return json_response(_answer(user_id, session))

    async def _guest(self, token: str, username: str | None) -> str:
        """Return the guest who wants a full account ("Guest Access"): the token's, and named so."""
        try:
            session = await self._edge.sessions.resolve(token)
        except MatrixError as error:
            # No token of this request's own is wrong: nobody is to be logged out by it.
            raise forbidden("The token is not a guest's") from error
        if not session.guest:
            raise forbidden("The token is not a guest's")
        if username is None:
            raise missing_param("Missing username")
        if self._registration.user_id_of(username) != session.user_id:
            raise forbidden("The token is another guest's")
        return session.user_id

    async def _register_guest(self, request: Request, raw: dict[str, Any]) -> Response:
        if not self._edge.config.registration.allow_guests:
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests are not let in")
        self._edge.registrations.check(request.remote)
        body = convert(raw, RegisterBody)
        check_device(None, body.initial_device_display_name)
        user_id = self._registration.new_user_id()
        login = self._edge.sessions.prepare(user_id, "guest_device", False)
        session = await self._registration.register(
            user_id, None, login, body.initial_device_display_name, guest=True
        )
        return json_response(_answer(user_id, session))

    async def check_available(self, request: Request) -> Response:
        """Say whether a username is free."""
        self._registration.check_open()
        username = request.query.get("username")
        if username is None:
            raise missing_param("Missing query parameter username")
        self._edge.asking.check(request.remote)
        await self._registration.check_available(username)
        return json_response({"available": True})

    async def check_token(self, request: Request) -> Response:
        """Say whether a registration token can be used."""
        self._registration.check_open()
        self._edge.token_checks.check(request.remote)
        token = request.query.get("token")
        if token is None:
            raise missing_param("Missing query parameter token")
        return json_response({"valid": await self._registration.is_token_valid(token)})

    async def get_nonce(self, request: Request) -> Response:
        """Give a nonce for a shared-secret registration."""
        self._edge.asking.check(request.remote)
        return json_response({"nonce": await self._registration.new_nonce()})

    async def register_with_secret(self, request: Request) -> Response:
        """Make an account, proved by the shared secret."""
        body = await read_body(request, SharedSecretBody)
        await self._registration.check_mac(
            body.nonce, body.username, body.password, body.admin, body.user_type, body.mac
        )
        user_id = await self._registration.check_available(body.username)
        password = self._registration.check_new_password(body.password)
        login = None if body.inhibit_login else self._edge.sessions.prepare(user_id, None, False)
        session = await self._registration.register(user_id, password, login, None, admin=body.admin)
        return json_response(_answer(user_id, session))


def _answer(user_id: str, session: Any) -> dict[str, Any]:
    if session is None:
        return {"user_id": user_id, "home_server": user_id.partition(":")[2]}
    return login_answer(session)
