"""Making accounts: names, the registration flows, the shared-secret form, guests."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from clientapi.accounts.passwords import Passwords
from clientapi.accounts.sessions import NewSession, PreparedLogin, Sessions
from clientapi.accounts.tell import Teller, account_changed
from clientapi.accounts.uia import StageDone, UiaDone
from clientapi.clock import Clock
from clientapi.storage import registration_tokens, tokens, users
from matrixlib.identifiers import MAX_ID_BYTES, is_valid_new_user_localpart
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, forbidden, invalid_param

DUMMY: Final = "m.login.dummy"
REGISTRATION_TOKEN: Final = "m.login.registration_token"  # noqa: S105 - a stage's name
NONCE_LIFETIME_MS: Final = 60_000


class Registration:
    """Makes accounts as the configuration allows."""

    def __init__(
        self,
        config: Config,
        db: Database,
        passwords: Passwords,
        sessions: Sessions,
        teller: Teller,
        clock: Clock,
    ) -> None:
        self._config = config
        self._db = db
        self._passwords = passwords
        self._sessions = sessions
        self._teller = teller
        self._clock = clock

    @property
    def flows(self) -> list[list[str]]:
        """The flows of open registration. Without verification asked for, a token is still taken."""
        if self._config.registration.require_verification:
            return [[REGISTRATION_TOKEN]]
        return [[DUMMY]]

    def check_open(self) -> None:
        """Check that clients may register.

        Raises:
            MatrixError: M_FORBIDDEN.
        """
        if not self._config.registration.enabled:
            raise forbidden("Registration is closed on this server")

    def user_id_of(self, username: str, server_name: str | None = None) -> str:
        """Return the user id that a wanted username makes; capitals become small letters.

        Args:
            server_name: of several local ones; the first by default.

        Raises:
            MatrixError: M_INVALID_USERNAME.
        """
        localpart = username.lower()
        user_id = f"@{localpart}:{server_name or self._config.server_names[0]}"
        if not is_valid_new_user_localpart(localpart):
            raise MatrixError("M_INVALID_USERNAME", 400, "A username consists of a-z, 0-9 and . _ = - / +")
        if len(user_id) > MAX_ID_BYTES:
            raise MatrixError("M_INVALID_USERNAME", 400, "The username is too long")
        return user_id

    async def check_available(self, username: str) -> str:
        """Return the user id of a username that is free.

        Raises:
            MatrixError: M_INVALID_USERNAME, M_USER_IN_USE.
        """
        user_id = self.user_id_of(username)
        if await self._db.read(users.user_exists, user_id):
            raise in_use()
        return user_id

    def new_user_id(self) -> str:
        """Return a random user id, for somebody who wants no particular one."""
        return f"@u{secrets.token_hex(8)}:{self._config.server_names[0]}"

    async def token_stage(self, auth: Mapping[str, Any]) -> StageDone:
        """The stage `m.login.registration_token`."""
        token = auth.get("token")
        if not isinstance(token, str) or not await self.is_token_valid(token):
            raise MatrixError("M_UNAUTHORIZED", 401, "The registration token is not valid")
        return StageDone(registration_token=token)

    async def is_token_valid(self, token: str) -> bool:
        """Say whether an account may be made with a registration token."""
        return await self._db.read(registration_tokens.is_registration_token_valid, token, self._clock())

    async def register(
        self,
        user_id: str,
        password: str | None,
        login: PreparedLogin | None,
        display_name: str | None,
        *,
        uia: UiaDone | None = None,
        admin: bool = False,
        guest: bool = False,
        upgrade: bool = False,
    ) -> NewSession | None:
        """Make an account, and a session unless `login` is None, in one unit of work.

        With `upgrade` the account is there and a guest's, and becomes a full one.

        Raises:
            MatrixError: M_USER_IN_USE; M_UNAUTHORIZED where the registration token or the session was used
            up meanwhile.
        """
        password_hash = None if password is None else await self._passwords.hash(password)
        await self._db.write(
            self._store_account,
            user_id,
            password_hash,
            login,
            display_name,
            uia,
            admin=admin,
            guest=guest,
            upgrade=upgrade,
        )
        return None if login is None else login.finish()

    def _store_account(
        self,
        conn: Connection,
        user_id: str,
        password_hash: str | None,
        login: PreparedLogin | None,
        display_name: str | None,
        uia: UiaDone | None,
        *,
        admin: bool,
        guest: bool,
        upgrade: bool,
    ) -> None:
        now = self._clock()
        if uia is not None:
            if not tokens.delete_uia_session(conn, uia.session_id):
                raise MatrixError("M_UNAUTHORIZED", 401, "The session is over")
            if uia.registration_token is not None and not registration_tokens.use_registration_token(
                conn, uia.registration_token, now
            ):
                raise MatrixError("M_UNAUTHORIZED", 401, "The registration token is used up")
        if upgrade:
            if password_hash is None or not users.store_former_guest(conn, user_id, password_hash):
                raise in_use()
            self._teller.tell_user(conn, "user.device", user_id, [account_changed(access=True)])
        elif not users.store_user(conn, user_id, password_hash, now, admin=admin, guest=guest):
            raise in_use()
        if login is not None:
            login.store(conn, display_name)

    # -- the shared-secret form
    # ------------------------------------------------------------------------------------

    async def new_nonce(self) -> str:
        """Return a nonce for one shared-secret registration within a minute."""
        self._shared_secret()
        nonce = secrets.token_hex(64)
        now = self._clock()
        await self._db.write(tokens.store_nonce, nonce, now, now - NONCE_LIFETIME_MS)
        return nonce

    async def check_mac(
        self, nonce: str, username: str, password: str, admin: bool, user_type: str | None, mac: str
    ) -> None:
        """Check the HMAC-SHA1 of a shared-secret registration and use its nonce up.

        Raises:
            MatrixError: the nonce is unknown (M_UNKNOWN, as existing tools expect) or the HMAC wrong
            (M_FORBIDDEN).
        """
        secret = self._shared_secret()
        if not await self._db.write(tokens.use_nonce, nonce, self._clock() - NONCE_LIFETIME_MS):
            raise MatrixError("M_UNKNOWN", 400, "unrecognised nonce")
        parts = [nonce, username, password, "admin" if admin else "notadmin"]
        if user_type is not None:
            parts.append(user_type)
        message = "\0".join(parts).encode(errors="surrogatepass")
        expected = hmac.new(secret.encode(), message, hashlib.sha1).hexdigest()
        if not hmac.compare_digest(expected.encode(), mac.encode(errors="surrogatepass")):
            raise forbidden("HMAC incorrect")

    def _shared_secret(self) -> str:
        secret = self._config.registration.shared_secret
        if not secret:
            raise MatrixError("M_UNKNOWN", 400, "Shared secret registration is not enabled")
        return secret

    def check_new_password(self, password: Any) -> str:
        """Return a password that may be set.

        Raises:
            MatrixError: M_MISSING_PARAM, M_INVALID_PARAM, M_WEAK_PASSWORD.
        """
        if password is None:
            raise MatrixError("M_MISSING_PARAM", 400, "Missing password")
        if not isinstance(password, str):
            raise invalid_param("password is not a string")
        self._passwords.check_new(password)
        return password


def in_use() -> MatrixError:
    """Return the answer where a user id is taken."""
    return MatrixError("M_USER_IN_USE", 400, "This username is taken")
