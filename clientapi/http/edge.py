"""What the endpoints share: authentication, rate limits, reading of bodies and ids."""

import re
from typing import Any, TypeVar

import msgspec

from clientapi.accounts.sessions import Session, Sessions
from clientapi.accounts.uia import UiaChallenge
from matrixlib.identifiers import (
    IdentifierError,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_user_id,
)
from servicekit.config import Config
from servicekit.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param
from servicekit.http import Handler, RateLimiter, Request, Response, json_response

T = TypeVar("T")

EMPTY = json_response({})
_MISSING_FIELD = re.compile(r"Object missing required field `(.*?)`")


class Edge:
    """Authenticates requests and counts them."""

    def __init__(self, config: Config, sessions: Sessions) -> None:
        self.config = config
        self.sessions = sessions
        limits = config.rate_limits
        self.messages = RateLimiter.of(limits, "message")
        self.redactions = RateLimiter.of(limits, "redaction")
        self.registrations = RateLimiter.of(limits, "registration")
        self.logins = RateLimiter.of(limits, "login")
        self.token_checks = RateLimiter.of(limits, "token_check")
        self.room_creations = RateLimiter.of(limits, "room_create")
        self.joins = RateLimiter.of(limits, "join")
        self.invites = RateLimiter.of(limits, "invite")
        self.profiles = RateLimiter.of(limits, "profile")
        self.searches = RateLimiter.of(limits, "search")
        self.asking = RateLimiter.of(limits, "asking")
        self.settings = RateLimiter.of(limits, "settings")
        self.ephemeral = RateLimiter.of(limits, "ephemeral")

    async def authenticate(self, request: Request) -> Session:
        """Return who asks.

        Raises:
            MatrixError: M_MISSING_TOKEN, M_UNKNOWN_TOKEN, M_USER_LOCKED.
        """
        token = request.require_access_token()
        session = self.sessions.known(token) or await self.sessions.resolve(token)
        self.sessions.note_seen(session, request.remote)
        return session

    async def authenticate_leaving(self, request: Request) -> Session:
        """Return who logs out, which a locked account may do. Raises as `authenticate`, but M_USER_LOCKED."""
        return await self.sessions.resolve(request.require_access_token(), allow_locked=True)

    async def authenticate_no_guest(self, request: Request) -> Session:
        """Return who asks for something that guests may not do.

        Raises:
            MatrixError: as `authenticate`; M_GUEST_ACCESS_FORBIDDEN.
        """
        session = await self.authenticate(request)
        if session.guest:
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not do this")
        return session

    async def authenticate_admin(self, request: Request) -> Session:
        """Return which administrator asks. To be called before anything is looked up.

        Raises:
            MatrixError: as `authenticate`; M_FORBIDDEN.
        """
        session = await self.authenticate(request)
        if not session.admin:
            raise forbidden("You are not a server administrator")
        return session

    async def authenticate_writer(self, request: Request) -> Session:
        """Return who asks for something that guests and suspended accounts may not do.

        Raises:
            MatrixError: as `authenticate`; M_GUEST_ACCESS_FORBIDDEN, M_USER_SUSPENDED.
        """
        session = await self.authenticate_no_guest(request)
        if session.suspended:
            raise suspended()
        return session

    async def authenticate_unsuspended(self, request: Request) -> Session:
        """Return who asks for something that guests may do and suspended accounts may not.

        Raises:
            MatrixError: as `authenticate`; M_USER_SUSPENDED.
        """
        session = await self.authenticate(request)
        if session.suspended:
            raise suspended()
        return session

    async def authenticate_as(self, request: Request) -> Session:
        """Return who asks, who must be the user that the path names.

        Raises:
            MatrixError: as `authenticate`; M_FORBIDDEN for another user's path.
        """
        session = await self.authenticate(request)
        if request.path_params["user_id"] != session.user_id:
            raise forbidden("This belongs to another user")
        return session

    async def authenticate_setting(self, request: Request) -> Session:
        """Return who changes settings of their own, which is counted. Raises as `authenticate`; M_LIMIT_EXCEEDED."""
        session = await self.authenticate(request)
        self.settings.check(session.user_id)
        return session

    async def authenticate_setting_as(self, request: Request) -> Session:
        """Do as `authenticate_setting`; the path names the user. Raises as `authenticate_as` too."""
        session = await self.authenticate_as(request)
        self.settings.check(session.user_id)
        return session


def suspended() -> MatrixError:
    """Return the answer to a suspended account that wants more than it may."""
    return MatrixError("M_USER_SUSPENDED", 403, "You cannot do this while your account is suspended")


def answer_challenges(handler: Handler) -> Handler:
    """Wrap a handler so that a `UiaChallenge` becomes its 401."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except UiaChallenge as challenge:
            return json_response(challenge.body, 401)

    return answer


async def read_body(request: Request, kind: type[T], *, allow_empty: bool = False) -> T:
    """Return the body as a struct.

    Raises:
        MatrixError: M_NOT_JSON, M_TOO_LARGE; a missing key is M_MISSING_PARAM, a wrong type M_BAD_JSON.
    """
    return convert(await request.json(allow_empty=allow_empty), kind)


def convert(value: Any, kind: type[T]) -> T:
    """Return parsed JSON as a struct; errors as in `read_body`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        missing = _MISSING_FIELD.match(str(error))
        if missing is not None:
            raise missing_param(f"Missing {missing[1]}") from None
        raise bad_json(str(error)) from None


def room_id_of(request: Request) -> str:
    """Return the room id of the path. Raises MatrixError M_INVALID_PARAM."""
    try:
        return parse_room_id(request.path_params["room_id"])
    except IdentifierError as error:
        raise invalid_param(f"The path holds {error}") from None


def check_user_id(value: Any) -> str:
    """Return a user id. Raises MatrixError M_INVALID_PARAM."""
    try:
        return parse_user_id(value)
    except IdentifierError as error:
        raise invalid_param(str(error)) from None


def check_event_id(value: Any) -> str:
    """Return an event id. Raises MatrixError M_INVALID_PARAM."""
    try:
        return parse_event_id(value)
    except IdentifierError as error:
        raise invalid_param(str(error)) from None


def check_alias(value: Any) -> str:
    """Return a room alias. Raises MatrixError M_INVALID_PARAM."""
    try:
        return parse_room_alias(value)
    except IdentifierError as error:
        raise invalid_param(str(error)) from None


def check_room_id(value: Any) -> str:
    """Return a room id. Raises MatrixError M_INVALID_PARAM."""
    try:
        return parse_room_id(value)
    except IdentifierError as error:
        raise invalid_param(str(error)) from None
