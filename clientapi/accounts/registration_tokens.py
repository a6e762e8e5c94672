"""Making, listing, changing and deleting registration tokens, for the command line and the admin API."""

import re
import secrets
import string
from typing import Final

from clientapi.clock import Clock
from clientapi.storage import registration_tokens as storage
from clientapi.storage.registration_tokens import RegistrationToken
from servicekit.database import Database
from servicekit.errors import invalid_param, not_found

DEFAULT_LENGTH: Final = 16
MAX_LENGTH: Final = 64
MAX_USES: Final = 2**31 - 1
MAX_EXPIRES_MS: Final = 2**53 - 1
_ALPHABET: Final = string.ascii_letters + string.digits
_VALID = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)


class RegistrationTokens:
    """See the module. Who may ask is the caller's matter."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def create(
        self,
        token: str | None = None,
        *,
        uses_allowed: int | None = None,
        expires_ms: int | None = None,
        length: int = DEFAULT_LENGTH,
    ) -> RegistrationToken:
        """Make a token.

        Args:
            token: the token itself; None: a random one.
            uses_allowed: how many accounts may be made with it; None: any number.
            expires_ms: when it ends, in milliseconds since 1970; None: never.
            length: characters of a random one.

        Raises:
            MatrixError: M_INVALID_PARAM, also where there is such a token already.
        """
        self._check(uses_allowed, expires_ms)
        if not 1 <= length <= MAX_LENGTH:
            raise invalid_param(f"length must be between 1 and {MAX_LENGTH}")
        if token is None:
            token = "".join(secrets.choice(_ALPHABET) for _ in range(length))
        if _VALID.fullmatch(token) is None:
            raise invalid_param(f"A token consists of A-Z a-z 0-9 . _ ~ -, at most {MAX_LENGTH} of them")
        if not await self._db.write(storage.store_registration_token, token, uses_allowed, expires_ms):
            raise invalid_param(f"There is a token {token} already")
        return RegistrationToken(token, uses_allowed, 0, 0, expires_ms)

    async def list_all(self, usable: bool | None = None) -> list[RegistrationToken]:
        """Return all tokens, or only those that can (cannot) be used now, in order of the token."""
        now = self._clock()
        found = await self._db.read(storage.load_registration_tokens, now)
        return [token for token in found if usable is None or token.is_usable(now) is usable]

    async def get(self, token: str) -> RegistrationToken:
        """Return a token. Raises MatrixError M_NOT_FOUND."""
        found = await self._db.read(storage.load_registration_tokens, self._clock(), token)
        if not found:
            raise not_found("There is no such registration token")
        return found[0]

    async def change(self, token: str, values: dict[str, int | None]) -> RegistrationToken:
        """Set `uses_allowed`, `expires_ms`, or both, and return the token.

        Raises:
            MatrixError: M_NOT_FOUND, M_INVALID_PARAM.
        """
        self._check(values.get("uses_allowed"), values.get("expires_ms"))
        if values:
            await self._db.write(storage.change_registration_token, token, values)
        return await self.get(token)

    async def delete(self, token: str) -> None:
        """Delete a token. Raises MatrixError M_NOT_FOUND."""
        if not await self._db.write(storage.delete_registration_token, token):
            raise not_found("There is no such registration token")

    def _check(self, uses_allowed: int | None, expires_ms: int | None) -> None:
        if uses_allowed is not None and not 0 <= uses_allowed <= MAX_USES:
            raise invalid_param("uses_allowed must be a whole number that is not negative")
        if expires_ms is not None and not self._clock() <= expires_ms <= MAX_EXPIRES_MS:
            raise invalid_param("The time of expiry is over")
