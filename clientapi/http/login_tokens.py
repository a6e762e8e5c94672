"""Tokens for a login on another device (spec, `POST /login/get_token`) and for proving who one is (OpenID)."""

from clientapi.accounts.logins import PasswordLogins
from clientapi.accounts.sessions import hash_token, new_token
from clientapi.accounts.uia import UserInteractiveAuth
from clientapi.clock import Clock
from clientapi.http.account import PASSWORD_FLOW
from clientapi.http.edge import Edge, answer_challenges
from clientapi.storage import short_tokens
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.http import Request, Response, Router, json_response

LOGIN_TOKEN_MS = 120_000
OPENID_TOKEN_S = 3600


class LoginTokenEndpoints:
    """`/login/get_token`, `/user/{userId}/openid/request_token`."""

    def __init__(
        self, edge: Edge, db: Database, logins: PasswordLogins, uia: UserInteractiveAuth, clock: Clock
    ) -> None:
        self._edge = edge
        self._db = db
        self._logins = logins
        self._uia = uia
        self._clock = clock

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/_matrix/client/v1/login/get_token", answer_challenges(self.make_login_token))
        router.add("POST", "/_matrix/client/v3/user/{user_id}/openid/request_token", self.make_openid_token)

    async def make_login_token(self, request: Request) -> Response:
        """Make a token with which another device logs in, once, within two minutes."""
        session = await self._edge.authenticate_no_guest(request)
        raw = await request.json(allow_empty=True)
        if not self._edge.config.passwords.enabled:
            raise MatrixError("M_UNRECOGNIZED", 404, "Unrecognized request")
        self._edge.logins.check(session.user_id)
        stages = {"m.login.password": self._logins.stage_for(session.user_id)}
        done = await self._uia.check(
            raw.get("auth"), "get a login token", session.user_id, PASSWORD_FLOW, stages
        )
        # Each token wants a proof of its own.
        await self._uia.end(done.session_id)
        token = new_token("arbl")
        now = self._clock()
        await self._db.write(
            short_tokens.store_login_token, hash_token(token), session.user_id, now, now + LOGIN_TOKEN_MS
        )
        return json_response({"login_token": token, "expires_in_ms": LOGIN_TOKEN_MS})

    async def make_openid_token(self, request: Request) -> Response:
        """Make a token that proves to others who one is, for an hour."""
        session = await self._edge.authenticate_as(request)
        await request.json(allow_empty=True)
        self._edge.messages.check(session.user_id)
        token = new_token("arbo")
        now = self._clock()
        await self._db.write(
            short_tokens.store_openid_token,
            hash_token(token),
            session.user_id,
            now,
            now + OPENID_TOKEN_S * 1000,
        )
        return json_response(
            {
                "access_token": token,
                "token_type": "Bearer",
                "matrix_server_name": session.server_name,
                "expires_in": OPENID_TOKEN_S,
            }
        )
