"""User-interactive authentication (client-server API, "User-Interactive Authentication API").

A session is bound to one operation (with its target) and one user, lives in the database so that any
process can go on with it, and holds no secret: only the names of the stages that are done.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clientapi.clock import Clock
from clientapi.storage import tokens
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, invalid_param
from servicekit.http import RateLimiter

SESSION_LIFETIME_MS: Final = 15 * 60 * 1000

Stage = Callable[[Mapping[str, Any]], Awaitable["StageDone"]]
"""Checks the `auth` dict of one stage; raises MatrixError if it does not prove what it should."""


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage is done. `registration_token`: the token it was done with, which is counted at the end."""

    registration_token: str | None = None


@dataclass(frozen=True, slots=True)
class UiaDone:
    """All stages of one flow are done."""

    session_id: str
    registration_token: str | None


class WrongUser(Exception):
    """A stage proves somebody else than who asks: no further try of it can be right."""


class UiaChallenge(Exception):
    """More stages are needed: a 401 with `body`."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__("user-interactive authentication required")
        self.body = body


class UserInteractiveAuth:
    """Runs sessions."""

    def __init__(self, config: Config, db: Database, clock: Clock) -> None:
        self._asking = RateLimiter.of(config.rate_limits, "asking")
        self._db = db
        self._clock = clock

    async def check(
        self,
        auth: Any,
        operation: str,
        user_id: str,
        flows: Sequence[Sequence[str]],
        stages: Mapping[str, Stage],
        params: Mapping[str, Any] | None = None,
    ) -> UiaDone:
        """Go on with a session, or begin one.

        Args:
            auth: the `auth` of the request's body, None if there is none.
            operation: what is to be done, target included; a session of another operation does not count.
            user_id: who asks; empty if nobody is logged in.
            flows: the stages of each way to get through.
            stages: how each stage is checked.

        Raises:
            UiaChallenge: stages are missing, or one failed.
            MatrixError: the session is of another operation or user, unknown, or `auth` is malformed;
                M_LIMIT_EXCEEDED. Who is not logged in is counted by the caller, who knows the address.
        """
        if user_id:
            self._asking.check(user_id)
        if auth is None:
            raise UiaChallenge(self._body(await self._begin(operation, user_id), flows, params, ()))
        if not isinstance(auth, dict):
            raise MatrixError("M_BAD_JSON", 400, "auth is not an object")
        session_id = auth.get("session")
        if session_id is None:
            # A client that knows the flow already may do its only stage at once.
            session_id = await self._begin(operation, user_id)
        if not isinstance(session_id, str):
            raise MatrixError("M_BAD_JSON", 400, "auth.session is not a string")
        session = await self._db.read(tokens.load_uia_session, session_id, self._clock())
        if session is None:
            raise invalid_param("There is no such session")
        if session.operation != operation or session.user_id != user_id:
            raise MatrixError("M_FORBIDDEN", 403, "The session was begun for something else")
        completed = session.completed
        token = session.registration_token
        stage = auth.get("type")
        if stage is not None:
            completed, token = await self._do_stage(session, stage, auth, flows, stages, params)
        if not any(set(flow) <= set(completed) for flow in flows):
            raise UiaChallenge(self._body(session_id, flows, params, completed))
        return UiaDone(session_id, token)

    async def _do_stage(
        self,
        session: tokens.UiaRow,
        stage: Any,
        auth: Mapping[str, Any],
        flows: Sequence[Sequence[str]],
        stages: Mapping[str, Stage],
        params: Mapping[str, Any] | None,
    ) -> tuple[tuple[str, ...], str | None]:
        check = stages.get(stage) if isinstance(stage, str) else None
        if check is None or not any(stage in flow for flow in flows):
            body = self._body(session.session_id, flows, params, session.completed)
            raise UiaChallenge(body | {"errcode": "M_UNRECOGNIZED", "error": "Not a stage of this operation"})
        if stage in session.completed:
            return session.completed, session.registration_token
        try:
            done = await check(auth)
        except WrongUser as error:
            raise MatrixError("M_FORBIDDEN", 403, "This is not the account that is logged in") from error
        except MatrixError as error:
            if error.http_status == 429:
                raise
            body = self._body(session.session_id, flows, params, session.completed)
            raise UiaChallenge(body | {"errcode": error.errcode, "error": error.message}) from error
        completed = (*session.completed, stage)
        token = done.registration_token or session.registration_token
        await self._db.write(tokens.store_uia_progress, session.session_id, completed, token)
        return completed, token

    async def _begin(self, operation: str, user_id: str) -> str:
        session_id = secrets.token_urlsafe(18)
        now = self._clock()
        await self._db.write(
            tokens.store_uia_session, session_id, operation, user_id, now, now + SESSION_LIFETIME_MS
        )
        return session_id

    async def end(self, session_id: str) -> None:
        """End a session after its operation was done."""
        await self._db.write(tokens.delete_uia_session, session_id)

    def _body(
        self,
        session_id: str,
        flows: Sequence[Sequence[str]],
        params: Mapping[str, Any] | None,
        completed: Sequence[str],
    ) -> dict[str, Any]:
        return {
            "flows": [{"stages": list(flow)} for flow in flows],
            "params": dict(params or {}),
            "session": session_id,
            "completed": list(completed),
        }


async def dummy_stage(auth: Mapping[str, Any]) -> StageDone:
    """`m.login.dummy`: always done."""
    return StageDone()
