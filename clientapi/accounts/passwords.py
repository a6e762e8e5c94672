"""Password hashes: argon2id, off the event loop.

Whether an account exists does not show in the time a login takes: an unknown user costs one verification,
too.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from servicekit.config import Config
from servicekit.errors import MatrixError

MAX_PASSWORD_BYTES = 512
HASHING_THREADS = 2


class Passwords:
    """Hashes and verifies passwords on threads of its own (argon2 lets go of the interpreter)."""

    def __init__(self, config: Config) -> None:
        self._min_length = config.passwords.min_length
        if config.passwords.hash_cost == "minimal":
            self._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, type=Type.ID)
        else:
            self._hasher = PasswordHasher(type=Type.ID)
        self._threads = ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="passwords")
        self._unknown_user_hash = self._hasher.hash("of a user who does not exist")

    def check_new(self, password: str) -> None:
        """Check that a password may be set.

        Raises:
            MatrixError: M_WEAK_PASSWORD if too short, M_INVALID_PARAM if too long.
        """
        if len(password) < self._min_length:
            raise MatrixError(
                "M_WEAK_PASSWORD", 400, f"A password has at least {self._min_length} characters"
            )
        if len(password) > MAX_PASSWORD_BYTES or len(_encode(password)) > MAX_PASSWORD_BYTES:
            raise MatrixError("M_INVALID_PARAM", 400, f"A password has at most {MAX_PASSWORD_BYTES} bytes")

    async def hash(self, password: str) -> str:
        """Return the hash to store."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._hasher.hash, _encode(password)
        )

    async def verify(self, stored_hash: str | None, password: str) -> bool:
        """Say whether a password fits. No hash (no such user) takes as long as a real one."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._verify, stored_hash, _encode(password)
        )

    def needs_rehash(self, stored_hash: str) -> bool:
        """Say whether a hash was made with other costs than those of today."""
        return self._hasher.check_needs_rehash(stored_hash)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored_hash: str | None, password: bytes) -> bool:
        if len(password) > MAX_PASSWORD_BYTES:
            password, stored_hash = b"", None
        try:
            fits = self._hasher.verify(stored_hash or self._unknown_user_hash, password)
        except (Argon2Error, InvalidHashError):
            return False
        return fits and stored_hash is not None


def _encode(password: str) -> bytes:
    # JSON may hold lone surrogates; such a password simply fits nothing.
    return password.encode(errors="surrogatepass")
