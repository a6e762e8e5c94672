"""The part of the Synapse-compatible admin API that is about registering: tokens, free names, the version."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from clientapi.accounts.registration import Registration
from clientapi.accounts.registration_tokens import DEFAULT_LENGTH, RegistrationTokens
from clientapi.http.admin_parameters import bool_of_query
from clientapi.http.edge import EMPTY, Edge
from clientapi.storage.registration_tokens import RegistrationToken
from servicekit.errors import bad_json, invalid_param, missing_param
from servicekit.http import Request, Response, Router, json_response

_ADMIN = "/_synapse/admin/v1"


class AdminTokenEndpoints:
    """`/registration_tokens`, `/username_available`, `/server_version`."""

    def __init__(self, edge: Edge, registration: Registration, tokens: RegistrationTokens) -> None:
        self._edge = edge
        self._registration = registration
        self._tokens = tokens

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", _ADMIN + "/server_version", self.get_version)
        router.add("GET", _ADMIN + "/username_available", self.check_available)
        router.add("GET", _ADMIN + "/registration_tokens", self.list_tokens)
        router.add("POST", _ADMIN + "/registration_tokens/new", self.make_token)
        router.add("GET", _ADMIN + "/registration_tokens/{token}", self.get_token)
        router.add("PUT", _ADMIN + "/registration_tokens/{token}", self.change_token)
        router.add("DELETE", _ADMIN + "/registration_tokens/{token}", self.delete_token)

    async def get_version(self, request: Request) -> Response:
        """Say what runs here."""
        await self._edge.authenticate_admin(request)
        try:
            number = version("arbor")
        except PackageNotFoundError:
            number = "0"
        return json_response({"server_version": f"Arbor {number}"})

    async def check_available(self, request: Request) -> Response:
        """Say whether a name is free, also while registration is closed."""
        await self._edge.authenticate_admin(request)
        username = request.query.get("username")
        if username is None:
            raise missing_param("Missing query parameter username")
        await self._registration.check_available(username)
        return json_response({"available": True})

    async def list_tokens(self, request: Request) -> Response:
        """List tokens; `valid` chooses those that can, or cannot, be used now."""
        await self._edge.authenticate_admin(request)
        found = await self._tokens.list_all(bool_of_query(request, "valid"))
        return json_response({"registration_tokens": [_as_json(token) for token in found]})

    async def make_token(self, request: Request) -> Response:
        """Make a token."""
        await self._edge.authenticate_admin(request)
        body = await request.json(allow_empty=True)
        token = body.get("token")
        if token is not None and (not isinstance(token, str) or not token):
            raise invalid_param("token is not a string that holds something")
        length = _whole_number(body, "length")
        made = await self._tokens.create(
            token,
            uses_allowed=_whole_number(body, "uses_allowed"),
            expires_ms=_whole_number(body, "expiry_time"),
            length=DEFAULT_LENGTH if length is None else length,
        )
        return json_response(_as_json(made))

    async def get_token(self, request: Request) -> Response:
        """Return a token."""
        await self._edge.authenticate_admin(request)
        return json_response(_as_json(await self._tokens.get(request.path_params["token"])))

    async def change_token(self, request: Request) -> Response:
        """Change how often and how long a token may be used; null means without limit."""
        await self._edge.authenticate_admin(request)
        body = await request.json()
        columns = {"uses_allowed": "uses_allowed", "expiry_time": "expires_ms"}
        values = {column: _whole_number(body, key) for key, column in columns.items() if key in body}
        return json_response(_as_json(await self._tokens.change(request.path_params["token"], values)))

    async def delete_token(self, request: Request) -> Response:
        """Delete a token."""
        await self._edge.authenticate_admin(request)
        await self._tokens.delete(request.path_params["token"])
        return EMPTY


def _whole_number(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise bad_json(f"{key} is not a whole number")
    return value


def _as_json(token: RegistrationToken) -> dict[str, Any]:
    return {
        "token": token.token,
        "uses_allowed": token.uses_allowed,
        "pending": token.pending,
        "completed": token.completed,
        "expiry_time": token.expires_ms,
    }
