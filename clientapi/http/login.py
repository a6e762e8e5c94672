"""Login, refresh, logout (client-server API, "Login", "Refreshing access tokens", "Logout")."""

from typing import Any

import msgspec

from clientapi.accounts.logins import PasswordLogins, identified_user
from clientapi.accounts.sessions import MAX_DEVICE_ID_CHARS, MAX_DISPLAY_NAME_CHARS, NewSession
from clientapi.http.edge import EMPTY, Edge, convert, read_body
from servicekit.errors import MatrixError, bad_json, invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response


class LoginBody(msgspec.Struct):
    """`POST /login`, the parts that all types share."""

    type: str
    password: str | None = None
    token: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool = False


class RefreshBody(msgspec.Struct):
    """`POST /refresh`."""

    refresh_token: str


class LoginEndpoints:
    """`/login`, `/refresh`, `/logout`, `/logout/all`."""

    def __init__(self, edge: Edge, logins: PasswordLogins) -> None:
        self._edge = edge
        self._logins = logins

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/v3/login", self.get_flows)
        router.add("POST", "/_matrix/client/v3/login", self.log_in)
        router.add("POST", "/_matrix/client/v3/refresh", self.refresh)
        router.add("POST", "/_matrix/client/v3/logout", self.log_out)
        router.add("POST", "/_matrix/client/v3/logout/all", self.log_out_everywhere)

    async def get_flows(self, request: Request) -> Response:
        """Say how one can log in."""
        if not self._edge.config.passwords.enabled:
            return json_response({"flows": []})
        by_token = {"type": "m.login.token", "get_login_token": True}
        return json_response({"flows": [{"type": "m.login.password"}, by_token]})

    async def log_in(self, request: Request) -> Response:
        """Log in with a password, or with a token that another session made."""
        raw = await request.json()
        body = convert(raw, LoginBody)
        by_token = body.type == "m.login.token"
        if not (by_token or body.type == "m.login.password") or not self._edge.config.passwords.enabled:
            raise MatrixError("M_UNKNOWN", 400, "This type of login is not known here")
        check_device(body.device_id, body.initial_device_display_name)
        if by_token:
            if body.token is None:
                raise missing_param("Missing token")
            self._edge.logins.check(request.remote)
            account = await self._logins.check_token(body.token)
            return await self._begin(account.user_id, body)
        if body.password is None:
            raise missing_param("Missing password")
        user = identified_user(raw)
        if user is None:
            raise missing_param("Missing identifier")
        self._edge.logins.check(request.remote)
        account = await self._logins.check(user, body.password)
        return await self._begin(account.user_id, body)

    async def _begin(self, user_id: str, body: LoginBody) -> Response:
        session = await self._edge.sessions.log_in(
            user_id, body.device_id, body.initial_device_display_name, body.refresh_token
        )
        return json_response(self._answer(session))

    def _answer(self, session: NewSession) -> dict[str, Any]:
        answer = login_answer(session)
        base_url = self._edge.config.public_base_url
        if base_url is not None:
            answer["well_known"] = {"m.homeserver": {"base_url": base_url}}
        return answer

    async def refresh(self, request: Request) -> Response:
        """Turn a refresh token into a new pair of tokens."""
        body = await read_body(request, RefreshBody)
        session = await self._edge.sessions.refresh(body.refresh_token)
        answer = login_answer(session)
        return json_response({key: answer[key] for key in ("access_token", "refresh_token", "expires_in_ms")})

    async def log_out(self, request: Request) -> Response:
        """End this session and its device."""
        session = await self._edge.authenticate_leaving(request)
        await self._edge.sessions.log_out(session)
        return EMPTY

    async def log_out_everywhere(self, request: Request) -> Response:
        """End all sessions and devices of the user."""
        session = await self._edge.authenticate_leaving(request)
        await self._edge.sessions.delete_devices(session.user_id, None)
        return EMPTY


def login_answer(session: NewSession) -> dict[str, Any]:
    """Return what login and registration answer."""
    answer: dict[str, Any] = {
        "user_id": session.user_id,
        "access_token": session.access_token,
        "device_id": session.device_id,
        "home_server": session.user_id.partition(":")[2],
    }
    if session.refresh_token is not None:
        answer["refresh_token"] = session.refresh_token
    if session.lifetime_ms is not None:
        answer["expires_in_ms"] = session.lifetime_ms
    return answer


def check_device(device_id: str | None, display_name: str | None) -> None:
    """Check what a client calls its device.

    Raises:
        MatrixError: M_INVALID_PARAM, M_BAD_JSON.
    """
    if device_id is not None:
        if not device_id or len(device_id) > MAX_DEVICE_ID_CHARS:
            raise invalid_param(f"A device id has 1 to {MAX_DEVICE_ID_CHARS} characters")
        if "\0" in device_id:
            raise bad_json("A device id holds no NUL")
    if display_name is not None and (len(display_name) > MAX_DISPLAY_NAME_CHARS or "\0" in display_name):
        raise invalid_param(
            f"A device's name has at most {MAX_DISPLAY_NAME_CHARS} characters, none of them NUL"
        )
