"""Password checks for login and for user-interactive auth, with their limits."""

from collections.abc import Mapping
from typing import Any

from clientapi.accounts.passwords import Passwords
from clientapi.accounts.sessions import hash_token
from clientapi.accounts.uia import StageDone, WrongUser
from clientapi.clock import Clock
from clientapi.storage import short_tokens, users
from matrixlib.identifiers import is_valid_user_id, server_name_of
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, forbidden
from servicekit.http import RateLimiter

WRONG = "The user name or the password is wrong"


class PasswordLogins:
    """Checks who somebody is by password."""

    def __init__(self, config: Config, db: Database, passwords: Passwords, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._db = db
        self._passwords = passwords
        self._failures = RateLimiter.of(config.rate_limits, "failed_login")

    async def check(self, user: str, password: str) -> users.User:
        """Return the account that a name and a password belong to.

        Whether the account exists shows neither in the answer nor in the time it takes.

        Raises:
            MatrixError: M_FORBIDDEN, M_USER_DEACTIVATED, M_USER_LOCKED, M_LIMIT_EXCEEDED.
        """
        user_id = self._user_id(user)
        self._failures.check(user_id, take=False)
        account = await self._db.read(self._load, user_id)
        fits = await self._passwords.verify(None if account is None else account.password_hash, password)
        if account is None or not fits:
            if account is not None and account.deactivated:
                raise MatrixError("M_USER_DEACTIVATED", 403, "This account is deactivated")
            self._failures.check(user_id)
            raise forbidden(WRONG)
        if account.deactivated:
            raise MatrixError("M_USER_DEACTIVATED", 403, "This account is deactivated")
        if account.locked:
            raise MatrixError("M_USER_LOCKED", 401, "This account is locked", extra={"soft_logout": True})
        if account.password_hash is not None and self._passwords.needs_rehash(account.password_hash):
            new_hash = await self._passwords.hash(password)
            await self._db.write(users.store_password, account.user_id, new_hash)
        return account

    async def check_token(self, token: str) -> users.User:
        """Return the account that a login token belongs to; the token is used up.

        Raises:
            MatrixError: M_FORBIDDEN, M_USER_DEACTIVATED, M_USER_LOCKED.
        """
        user_id = await self._db.write(short_tokens.use_login_token, hash_token(token), self._clock())
        account = None if user_id is None else await self._db.read(users.load_user, user_id)
        if account is None:
            raise forbidden("The login token is not valid")
        if account.deactivated:
            raise MatrixError("M_USER_DEACTIVATED", 403, "This account is deactivated")
        if account.locked:
            raise MatrixError("M_USER_LOCKED", 401, "This account is locked", extra={"soft_logout": True})
        return account

    def stage_for(self, user_id: str) -> "PasswordStage":
        """Return the stage `m.login.password` for a user who is logged in."""
        return PasswordStage(self, user_id)

    def is_name_of(self, user: str, user_id: str) -> bool:
        """Say whether somebody who writes `user` means the account `user_id`, in whatever case of letters."""
        try:
            named = self._user_id(user)
        except MatrixError:
            return False
        return user_id in (named, named.lower())

    def _user_id(self, user: str) -> str:
        if user.startswith("@"):
            if not is_valid_user_id(user):
                raise MatrixError("M_INVALID_PARAM", 400, "Not a user id")
            if not self._config.is_local(server_name_of(user)):
                raise forbidden(WRONG)
            return user
        return f"@{user}:{self._config.server_names[0]}"

    @staticmethod
    def _load(conn: Any, user_id: str) -> users.User | None:
        # Ids are minted in small letters; people write capitals.
        return users.load_user(conn, user_id) or users.load_user(conn, user_id.lower())


class PasswordStage:
    """The stage `m.login.password`, which must name the user who is logged in."""

    def __init__(self, logins: PasswordLogins, user_id: str) -> None:
        self._logins = logins
        self._user_id = user_id

    async def __call__(self, auth: Mapping[str, Any]) -> StageDone:
        """Check the stage."""
        password = auth.get("password")
        if not isinstance(password, str):
            raise bad_json("auth.password is not a string")
        named = identified_user(auth)
        if named is not None and not self._logins.is_name_of(named, self._user_id):
            # Whether that other password is right is nobody's business here.
            raise WrongUser
        account = await self._logins.check(self._user_id, password)
        if account.user_id != self._user_id:
            raise WrongUser
        return StageDone()


def identified_user(body: Mapping[str, Any]) -> str | None:
    """Return the user that `identifier` (or the older `user`) names; None if there is neither.

    Raises:
        MatrixError: an identifier that is malformed (M_BAD_JSON, M_MISSING_PARAM), or of a kind that names
        nobody here.
    """
    identifier = body.get("identifier")
    if identifier is None:
        user = body.get("user")
        if user is None and ("medium" in body or "address" in body):
            raise forbidden(WRONG)
        if user is not None and not isinstance(user, str):
            raise bad_json("user is not a string")
        return user
    if not isinstance(identifier, dict):
        raise bad_json("identifier is not an object")
    kind = identifier.get("type")
    if kind == "m.id.user":
        user = identifier.get("user")
        if user is None:
            raise MatrixError("M_MISSING_PARAM", 400, "identifier.user is missing")
        if not isinstance(user, str):
            raise bad_json("identifier.user is not a string")
        return user
    if kind in ("m.id.thirdparty", "m.id.phone"):
        # No addresses are bound to accounts yet: it names nobody.
        raise forbidden(WRONG)
    if not isinstance(kind, str):
        raise bad_json("identifier.type is not a string")
    raise MatrixError("M_UNKNOWN", 400, "This kind of identifier is not known")
