"""Who holds an OpenID token (server-server API, "OpenID"). Third parties ask, who sign nothing."""

from federation.http.endpoints import Endpoint
from federation.local_users import LocalUsers
from servicekit.errors import missing_token, unknown_token
from servicekit.http import Request, Response, json_response

MAX_TOKEN = 512


class OpenIdRoutes:
    """See the module."""

    ENDPOINTS = (Endpoint("GET", "/_matrix/federation/v1/openid/userinfo", "userinfo", signed=False),)

    def __init__(self, users: LocalUsers) -> None:
        self._users = users

    async def userinfo(self, request: Request) -> Response:
        """GET /openid/userinfo."""
        token = request.query.get("access_token")
        if not token:
            raise missing_token()
        if len(token) > MAX_TOKEN:
            raise unknown_token()
        return json_response({"sub": await self._users.user_of_openid_token(token)})
