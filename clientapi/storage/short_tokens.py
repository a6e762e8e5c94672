"""Tokens that live for minutes: for one login on another device, and for proving who one is (OpenID)."""

from sqlalchemy import Connection, Table, delete, insert, select

from clientapi.storage.tables import login_tokens, openid_tokens, users


def store_login_token(
    conn: Connection, token_hash: bytes, user_id: str, now_ms: int, expires_ms: int
) -> None:
    """Store a token for one login; those that ran out are cleared away."""
    _store(conn, login_tokens, token_hash, user_id, now_ms, expires_ms)


def use_login_token(conn: Connection, token_hash: bytes, now_ms: int) -> str | None:
    """Use a token up and return whose it is; None if there is no such one (any more)."""
    condition = (login_tokens.c.token_hash == token_hash) & (login_tokens.c.expires_ms > now_ms)
    used = conn.execute(delete(login_tokens).where(condition).returning(login_tokens.c.user_id))
    user_id: str | None = used.scalar()
    return user_id


def store_openid_token(
    conn: Connection, token_hash: bytes, user_id: str, now_ms: int, expires_ms: int
) -> None:
    """Store a token that proves who its holder is; those that ran out are cleared away."""
    _store(conn, openid_tokens, token_hash, user_id, now_ms, expires_ms)


def load_openid_user(conn: Connection, token_hash: bytes, now_ms: int) -> str | None:
    """Return whose token it is; None if it is not known, ran out, or the account may not be used."""
    return conn.execute(
        select(openid_tokens.c.user_id)
        .join(users, users.c.user_id == openid_tokens.c.user_id)
        .where(
            openid_tokens.c.token_hash == token_hash,
            openid_tokens.c.expires_ms > now_ms,
            users.c.deactivated.is_(False),
            users.c.locked.is_(False),
        )
    ).scalar()


def _store(
    conn: Connection, table: Table, token_hash: bytes, user_id: str, now_ms: int, expires_ms: int
) -> None:
    conn.execute(delete(table).where(table.c.expires_ms <= now_ms))
    conn.execute(insert(table).values(token_hash=token_hash, user_id=user_id, expires_ms=expires_ms))
