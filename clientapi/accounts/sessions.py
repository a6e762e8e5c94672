"""Sessions: which user and device an access token belongs to; login, refresh, logout.

Tokens are random, stored as SHA-256 only, and known in memory once seen. The memory is kept right twice:
what this process ends it forgets at once; what another process on the same database ends, the log tells
(`user.device`).

A login that asks for it gets a refresh token. Each refresh makes a new pair; the old pair ends when the new
one is used, so that a client that lost the answer can try again. An old refresh token after that is theft:
the whole family ends.
"""

import hashlib
import secrets
import string
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from clientapi.accounts.tell import Teller, device_changed
from clientapi.clock import Clock
from clientapi.storage import settings, tokens, users
from matrixlib.identifiers import server_name_of
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import MatrixError, missing_token, unknown_token

MAX_CACHED_TOKENS: Final = 100_000
MAX_DEVICE_ID_CHARS: Final = 255
MAX_DISPLAY_NAME_CHARS: Final = 255
# More of one user have ended when another logs in: those unseen for longest.
MAX_DEVICES: Final = 1000
# Of one login; older ones are forgotten, and then as unknown as any.
MAX_KEPT_REFRESH_TOKENS: Final = 100


@dataclass(frozen=True, slots=True)
class Session:
    """Who makes a request."""

    user_id: str
    device_id: str
    server_name: str
    guest: bool
    admin: bool
    suspended: bool
    expires_ms: int | None
    token_hash: bytes


def local_session(user_id: str) -> Session:
    """Return a session for what the server does in a user's name; it has no device and no token."""
    return Session(
        user_id=user_id,
        device_id="",
        server_name=server_name_of(user_id),
        guest=False,
        admin=False,
        suspended=False,
        expires_ms=None,
        token_hash=b"",
    )


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a login gives the client. `lifetime_ms` is set where the access token expires."""

    user_id: str
    device_id: str
    access_token: str
    refresh_token: str | None
    lifetime_ms: int | None


@dataclass(frozen=True, slots=True)
class _Pair:
    access_token: str
    access_hash: bytes
    refresh_token: str | None
    refresh_hash: bytes | None
    expires_ms: int | None
    refresh_expires_ms: int | None
    lifetime_ms: int | None


class Sessions:
    """The sessions of one process's clients."""

    def __init__(self, config: Config, db: Database, teller: Teller, clock: Clock) -> None:
        self._lifetimes = config.sessions
        self._db = db
        self._teller = teller
        self._clock = clock
        self._by_hash: dict[bytes, Session] = {}
        self._hashes_of_user: dict[str, set[bytes]] = {}
        # Counts what was forgotten: a row read before and cached after would otherwise outlive its end.
        self._forgotten = 0
        self._last_seen: dict[tuple[str, str], tuple[int, str]] = {}

    # -- who is it
    # -----------------------------------------------------------------------------------------------

    def known(self, access_token: str) -> Session | None:
        """Return the session of a token from memory, None if it must be looked up. Never waits."""
        session = self._by_hash.get(hash_token(access_token))
        if session is None or (session.expires_ms is not None and session.expires_ms <= self._clock()):
            return None
        return session

    async def resolve(self, access_token: str | None, *, allow_locked: bool = False) -> Session:
        """Return the session of a token; of a locked account only where `allow_locked` says so.

        Raises:
            MatrixError: M_MISSING_TOKEN, M_UNKNOWN_TOKEN (with `soft_logout` where the token only expired),
                M_USER_LOCKED.
        """
        if not access_token:
            raise missing_token()
        session = self.known(access_token)
        if session is not None:
            return session
        return await self._look_up(hash_token(access_token), allow_locked)

    async def _look_up(self, token_hash: bytes, allow_locked: bool) -> Session:
        forgotten = self._forgotten
        row = await self._db.read(tokens.load_access_token, token_hash)
        if row is None or row.deactivated:
            raise unknown_token()
        if row.expires_ms is not None and row.expires_ms <= self._clock():
            raise unknown_token(soft_logout=True)
        if row.locked and not allow_locked:
            raise MatrixError("M_USER_LOCKED", 401, "This account is locked", extra={"soft_logout": True})
        if row.family is not None and not row.used:
            await self._db.write(self._note_used, token_hash, row)
            self._forget_user(row.user_id)
            forgotten = self._forgotten
        session = Session(
            user_id=row.user_id,
            device_id=row.device_id,
            server_name=server_name_of(row.user_id),
            guest=row.guest,
            admin=row.admin,
            suspended=row.suspended,
            expires_ms=row.expires_ms,
            token_hash=token_hash,
        )
        if forgotten == self._forgotten and not row.locked:
            self._remember(session)
        return session

    def _note_used(self, conn: Connection, token_hash: bytes, row: tokens.TokenRow) -> None:
        assert row.family is not None
        tokens.mark_access_token_used(conn, token_hash, row.family)
        # Other processes may still know the older token of this family.
        device = users.load_device(conn, row.user_id, row.device_id)
        name = device.display_name if device is not None else None
        self._teller.tell_user(conn, "user.device", row.user_id, [device_changed(row.device_id, name)])

    def _remember(self, session: Session) -> None:
        if len(self._by_hash) >= MAX_CACHED_TOKENS:
            oldest = next(iter(self._by_hash.values()))
            self._drop(oldest)
        self._by_hash[session.token_hash] = session
        self._hashes_of_user.setdefault(session.user_id, set()).add(session.token_hash)

    def _drop(self, session: Session) -> None:
        self._by_hash.pop(session.token_hash, None)
        hashes = self._hashes_of_user.get(session.user_id)
        if hashes is not None:
            hashes.discard(session.token_hash)
            if not hashes:
                del self._hashes_of_user[session.user_id]

    def forget_user(self, user_id: str) -> None:
        """Forget what is known of a user's tokens: something about them changed."""
        self._forget_user(user_id)

    def _forget_user(self, user_id: str) -> None:
        self._forgotten += 1
        for token_hash in self._hashes_of_user.pop(user_id, ()):
            self._by_hash.pop(token_hash, None)

    def forget_everything(self) -> None:
        """Forget all tokens: what ended meanwhile was not heard."""
        self._forgotten += 1
        self._by_hash.clear()
        self._hashes_of_user.clear()

    def note_seen(self, session: Session, address: str) -> None:
        """Remember when and where a device was last seen; `flush_seen` writes it."""
        self._last_seen[(session.user_id, session.device_id)] = (self._clock(), address)

    async def flush_seen(self) -> None:
        """Write what `note_seen` gathered."""
        if self._last_seen:
            seen = [(user, device, when, where) for (user, device), (when, where) in self._last_seen.items()]
            self._last_seen = {}
            await self._db.write(users.store_last_seen, seen)

    # -- login, refresh, logout
    # ----------------------------------------------------------------------------------

    def prepare(self, user_id: str, device_id: str | None, refreshable: bool) -> "PreparedLogin":
        """Choose device id and tokens of a login; `PreparedLogin.store` makes it real in a unit of work."""
        family = secrets.token_hex(8) if refreshable else None
        return PreparedLogin(self, user_id, device_id or new_device_id(), family, self._new_pair(refreshable))

    async def log_in(
        self, user_id: str, device_id: str | None, display_name: str | None, refreshable: bool
    ) -> NewSession:
        """Make a session; an earlier one of the same device ends."""
        prepared = self.prepare(user_id, device_id, refreshable)
        await self._db.write(prepared.store, display_name)
        return prepared.finish()

    async def refresh(self, refresh_token: str) -> NewSession:
        """Turn a refresh token into a new pair.

        Raises:
            MatrixError: M_UNKNOWN_TOKEN.
        """
        pair = self._new_pair(True)
        outcome = await self._db.write(self._refresh, hash_token(refresh_token), pair)
        if isinstance(outcome, tokens.RefreshRow):
            self._forget_user(outcome.user_id)
            return NewSession(
                outcome.user_id, outcome.device_id, pair.access_token, pair.refresh_token, pair.lifetime_ms
            )
        if outcome is not None:
            self._forget_user(outcome)
        raise unknown_token()

    def _refresh(self, conn: Connection, token_hash: bytes, pair: _Pair) -> tokens.RefreshRow | str | None:
        row = tokens.load_refresh_token(conn, token_hash)
        if row is None:
            return None
        now = self._clock()
        user = users.load_user(conn, row.user_id)
        if (
            (row.expires_ms is not None and row.expires_ms <= now)
            or user is None
            or user.deactivated
            or user.locked
        ):
            return None
        if row.next_refresh_hash is not None:
            if tokens.was_successor_used(conn, row):
                # The token was used, its successor too, and now the token again: two clients have it.
                tokens.delete_family(conn, row.family)
                self._teller.tell_user(
                    conn, "user.device", row.user_id, [device_changed(row.device_id, None)]
                )
                return row.user_id
            tokens.delete_tokens_of_successor(conn, row)
        assert pair.refresh_hash is not None
        tokens.store_access_token(
            conn, pair.access_hash, row.user_id, row.device_id, now, pair.expires_ms, row.family
        )
        tokens.store_refresh_token(
            conn, pair.refresh_hash, row.user_id, row.device_id, row.family, now, pair.refresh_expires_ms
        )
        tokens.store_refresh_successor(conn, row.token_hash, pair.access_hash, pair.refresh_hash)
        tokens.delete_oldest_refresh_tokens(conn, row.family, MAX_KEPT_REFRESH_TOKENS)
        return row

    def _new_pair(self, refreshable: bool) -> _Pair:
        now = self._clock()
        access_token = new_token("arba")
        if not refreshable:
            lifetime = self._lifetimes.nonrefreshable_lifetime
            lifetime_ms = None if lifetime is None else int(lifetime * 1000)
            expires_ms = None if lifetime_ms is None else now + lifetime_ms
            return _Pair(access_token, hash_token(access_token), None, None, expires_ms, None, lifetime_ms)
        refresh_token = new_token("arbr")
        lifetime_ms = int(self._lifetimes.access_token_lifetime * 1000)
        unused = self._lifetimes.refresh_token_lifetime
        return _Pair(
            access_token,
            hash_token(access_token),
            refresh_token,
            hash_token(refresh_token),
            now + lifetime_ms,
            None if unused is None else now + int(unused * 1000),
            lifetime_ms,
        )

    async def log_out(self, session: Session) -> None:
        """End a session and its device."""
        await self.delete_devices(session.user_id, [session.device_id])

    async def delete_devices(
        self, user_id: str, device_ids: list[str] | None, *, except_device: str | None = None
    ) -> None:
        """End devices (None: all, but for `except_device`) with their sessions."""
        await self._db.write(self.end_devices, user_id, device_ids, except_device)
        self._forget_user(user_id)

    def end_devices(
        self, conn: Connection, user_id: str, device_ids: list[str] | None, except_device: str | None = None
    ) -> None:
        """Do as `delete_devices`, in a unit of work. The caller calls `forget_user` afterwards."""
        if device_ids is None and except_device is not None:
            device_ids = [
                d.device_id for d in users.load_devices(conn, [user_id]) if d.device_id != except_device
            ]
        gone = users.delete_devices(conn, user_id, device_ids)
        settings.delete_device_pushers(conn, user_id, gone)
        if gone:
            self._teller.tell_user(
                conn,
                "user.device",
                user_id,
                [device_changed(device_id, None, deleted=True) for device_id in gone],
            )


@dataclass(frozen=True, slots=True)
class PreparedLogin:
    """A login whose device id and tokens are chosen."""

    sessions: Sessions
    user_id: str
    device_id: str
    family: str | None
    pair: _Pair

    def store(self, conn: Connection, display_name: str | None) -> None:
        """Store device and tokens; older tokens of the device end."""
        now = self.sessions._clock()
        pair = self.pair
        is_new = users.store_device(conn, self.user_id, self.device_id, display_name, now)
        if is_new:
            superfluous = users.load_longest_unseen(conn, self.user_id, MAX_DEVICES)
            if superfluous:
                self.sessions.end_devices(conn, self.user_id, superfluous)
        tokens.delete_device_tokens(conn, self.user_id, self.device_id)
        tokens.store_access_token(
            conn, pair.access_hash, self.user_id, self.device_id, now, pair.expires_ms, self.family
        )
        if pair.refresh_hash is not None and self.family is not None:
            tokens.store_refresh_token(
                conn,
                pair.refresh_hash,
                self.user_id,
                self.device_id,
                self.family,
                now,
                pair.refresh_expires_ms,
            )
        if not is_new:
            device = users.load_device(conn, self.user_id, self.device_id)
            display_name = device.display_name if device is not None else None
        self.sessions._teller.tell_user(
            conn, "user.device", self.user_id, [device_changed(self.device_id, display_name)]
        )

    def finish(self) -> NewSession:
        """What the client gets, once `store` is committed."""
        self.sessions.forget_user(self.user_id)
        pair = self.pair
        return NewSession(
            self.user_id, self.device_id, pair.access_token, pair.refresh_token, pair.lifetime_ms
        )


def hash_token(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def new_token(kind: str) -> str:
    """Return a new secret token: `<kind>_` and 256 random bits."""
    return f"{kind}_{secrets.token_urlsafe(32)}"


def new_device_id() -> str:
    """Return a random device id."""
    return "".join(secrets.choice(string.ascii_uppercase) for _ in range(10))
