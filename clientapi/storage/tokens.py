"""Access and refresh tokens (hashes only), sessions of user-interactive auth, nonces."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from clientapi.storage.tables import (
    access_tokens,
    refresh_tokens,
    registration_nonces,
    uia_sessions,
    users,
)
from servicekit.database.raw import Sql

_ACCESS_TOKEN = Sql(
    "SELECT t.user_id, t.device_id, t.expires_ms, t.family, t.used,"  # noqa: S608
    " u.admin, u.guest, u.deactivated, u.suspended, u.locked"
    f" FROM {access_tokens.name} t JOIN {users.name} u ON u.user_id = t.user_id WHERE t.token_hash = ?"
)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An access token with what is known of its user."""

    user_id: str
    device_id: str
    expires_ms: int | None
    family: str | None
    used: bool
    admin: bool
    guest: bool
    deactivated: bool
    suspended: bool
    locked: bool


@dataclass(frozen=True, slots=True)
class RefreshRow:
    """A refresh token."""

    token_hash: bytes
    user_id: str
    device_id: str
    family: str
    expires_ms: int | None
    next_access_hash: bytes | None
    next_refresh_hash: bytes | None


def store_access_token(
    conn: Connection,
    token_hash: bytes,
    user_id: str,
    device_id: str,
    now_ms: int,
    expires_ms: int | None,
    family: str | None,
) -> None:
    """Store a new access token."""
    conn.execute(
        insert(access_tokens).values(
            token_hash=token_hash,
            user_id=user_id,
            device_id=device_id,
            created_ms=now_ms,
            expires_ms=expires_ms,
            family=family,
            used=False,
        )
    )


def load_access_token(conn: Connection, token_hash: bytes) -> TokenRow | None:
    """Return what an access token stands for, or None."""
    row = _ACCESS_TOKEN.row(conn, token_hash)
    return None if row is None else TokenRow(*row[:4], *map(bool, row[4:]))


def mark_access_token_used(conn: Connection, token_hash: bytes, family: str) -> None:
    """Note that a refreshed token reached its client: the older access tokens of its family end."""
    conn.execute(update(access_tokens).where(access_tokens.c.token_hash == token_hash).values(used=True))
    created_ms = select(access_tokens.c.created_ms).where(access_tokens.c.token_hash == token_hash)
    conn.execute(
        delete(access_tokens).where(
            access_tokens.c.family == family, access_tokens.c.created_ms < created_ms.scalar_subquery()
        )
    )


def delete_access_token(conn: Connection, token_hash: bytes) -> None:
    """Delete one access token."""
    conn.execute(delete(access_tokens).where(access_tokens.c.token_hash == token_hash))


def delete_device_tokens(conn: Connection, user_id: str, device_id: str) -> None:
    """Delete the tokens of a device; the device stays."""
    for table in (access_tokens, refresh_tokens):
        conn.execute(delete(table).where(table.c.user_id == user_id, table.c.device_id == device_id))


def store_refresh_token(
    conn: Connection,
    token_hash: bytes,
    user_id: str,
    device_id: str,
    family: str,
    now_ms: int,
    expires_ms: int | None,
) -> None:
    """Store a new refresh token."""
    conn.execute(
        insert(refresh_tokens).values(
            token_hash=token_hash,
            user_id=user_id,
            device_id=device_id,
            family=family,
            created_ms=now_ms,
            expires_ms=expires_ms,
        )
    )


def load_refresh_token(conn: Connection, token_hash: bytes) -> RefreshRow | None:
    """Return a refresh token, or None. Inside a writing unit of work nobody else can use it meanwhile."""
    row = conn.execute(
        select(
            refresh_tokens.c.token_hash,
            refresh_tokens.c.user_id,
            refresh_tokens.c.device_id,
            refresh_tokens.c.family,
            refresh_tokens.c.expires_ms,
            refresh_tokens.c.next_access_hash,
            refresh_tokens.c.next_refresh_hash,
        )
        .where(refresh_tokens.c.token_hash == token_hash)
        .with_for_update()
    ).one_or_none()
    return None if row is None else RefreshRow(*row)


def store_refresh_successor(
    conn: Connection, token_hash: bytes, next_access_hash: bytes, next_refresh_hash: bytes
) -> None:
    """Note what a refresh token was turned into."""
    conn.execute(
        update(refresh_tokens)
        .where(refresh_tokens.c.token_hash == token_hash)
        .values(next_access_hash=next_access_hash, next_refresh_hash=next_refresh_hash)
    )


def delete_oldest_refresh_tokens(conn: Connection, family: str, keep: int) -> None:
    """Forget all but the newest refresh tokens that came of one login."""
    oldest = (
        select(refresh_tokens.c.token_hash)
        .where(refresh_tokens.c.family == family)
        .order_by(refresh_tokens.c.created_ms.desc())
        .offset(keep)
    )
    conn.execute(delete(refresh_tokens).where(refresh_tokens.c.token_hash.in_(oldest)))


def was_successor_used(conn: Connection, row: RefreshRow) -> bool:
    """Say whether one of the two tokens that a refresh token was turned into has been used since."""
    access = conn.execute(
        select(access_tokens.c.used).where(access_tokens.c.token_hash == row.next_access_hash)
    ).scalar()
    refresh = conn.execute(
        select(refresh_tokens.c.next_refresh_hash).where(refresh_tokens.c.token_hash == row.next_refresh_hash)
    ).one_or_none()
    # A successor that is gone altogether was used, too: nothing else ends it before this one.
    return access is None or bool(access) or refresh is None or refresh[0] is not None


def delete_tokens_of_successor(conn: Connection, row: RefreshRow) -> None:
    """Take back the unused pair that a refresh token was turned into: its client never got it."""
    conn.execute(delete(access_tokens).where(access_tokens.c.token_hash == row.next_access_hash))
    conn.execute(delete(refresh_tokens).where(refresh_tokens.c.token_hash == row.next_refresh_hash))


def delete_family(conn: Connection, family: str) -> None:
    """End every token that came of one login."""
    conn.execute(delete(access_tokens).where(access_tokens.c.family == family))
    conn.execute(delete(refresh_tokens).where(refresh_tokens.c.family == family))


@dataclass(frozen=True, slots=True)
class UiaRow:
    """A session of user-interactive auth."""

    session_id: str
    operation: str
    user_id: str
    completed: tuple[str, ...]
    registration_token: str | None


def store_uia_session(
    conn: Connection, session_id: str, operation: str, user_id: str, now_ms: int, expires_ms: int
) -> None:
    """Begin a session; those that ran out are cleared away."""
    conn.execute(delete(uia_sessions).where(uia_sessions.c.expires_ms < now_ms))
    conn.execute(
        insert(uia_sessions).values(
            session_id=session_id, operation=operation, user_id=user_id, completed="", expires_ms=expires_ms
        )
    )


def load_uia_session(conn: Connection, session_id: str, now_ms: int) -> UiaRow | None:
    """Return a session that has not run out, or None."""
    row = conn.execute(
        select(uia_sessions).where(
            uia_sessions.c.session_id == session_id, uia_sessions.c.expires_ms >= now_ms
        )
    ).one_or_none()
    if row is None:
        return None
    return UiaRow(
        row.session_id, row.operation, row.user_id, tuple(row.completed.split()), row.registration_token
    )


def store_uia_progress(
    conn: Connection, session_id: str, completed: tuple[str, ...], registration_token: str | None
) -> None:
    """Note which stages of a session are done."""
    conn.execute(
        update(uia_sessions)
        .where(uia_sessions.c.session_id == session_id)
        .values(completed=" ".join(completed), registration_token=registration_token)
    )


def delete_uia_session(conn: Connection, session_id: str) -> bool:
    """End a session; False if somebody else ended it first."""
    return conn.execute(delete(uia_sessions).where(uia_sessions.c.session_id == session_id)).rowcount == 1


def store_nonce(conn: Connection, nonce: str, now_ms: int, oldest_ms: int) -> None:
    """Store a nonce of the shared-secret registration; older ones end."""
    conn.execute(delete(registration_nonces).where(registration_nonces.c.created_ms < oldest_ms))
    conn.execute(insert(registration_nonces).values(nonce=nonce, created_ms=now_ms))


def use_nonce(conn: Connection, nonce: str, oldest_ms: int) -> bool:
    """Use up a nonce; False if there is no such one (any more)."""
    result = conn.execute(
        delete(registration_nonces).where(
            registration_nonces.c.nonce == nonce, registration_nonces.c.created_ms >= oldest_ms
        )
    )
    return result.rowcount == 1
