"""Registration tokens: what accounts can be made with where registration asks for one."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from clientapi.storage.tables import registration_tokens, uia_sessions
from clientapi.storage.upsert import insert_or_ignore


@dataclass(frozen=True, slots=True)
class RegistrationToken:
    """A row of `registration_tokens`. `pending`: registrations that have begun with it and not ended."""

    token: str
    uses_allowed: int | None
    pending: int
    completed: int
    expires_ms: int | None

    def is_usable(self, now_ms: int) -> bool:
        """Say whether another account may be made with it."""
        return (self.expires_ms is None or self.expires_ms > now_ms) and (
            self.uses_allowed is None or self.uses_allowed > self.completed
        )


def store_registration_token(
    conn: Connection, token: str, uses_allowed: int | None = None, expires_ms: int | None = None
) -> bool:
    """Make a token; False if there is one of this name."""
    values = {"token": token, "uses_allowed": uses_allowed, "completed": 0, "expires_ms": expires_ms}
    return insert_or_ignore(conn, registration_tokens, values)


def load_registration_tokens(
    conn: Connection, now_ms: int, token: str | None = None
) -> list[RegistrationToken]:
    """Return the tokens (or only this one), in order of the token."""
    pending = (
        select(func.count())
        .where(
            uia_sessions.c.registration_token == registration_tokens.c.token,
            uia_sessions.c.expires_ms >= now_ms,
        )
        .scalar_subquery()
    )
    query = select(
        registration_tokens.c.token,
        registration_tokens.c.uses_allowed,
        pending,
        registration_tokens.c.completed,
        registration_tokens.c.expires_ms,
    ).order_by(registration_tokens.c.token)
    if token is not None:
        query = query.where(registration_tokens.c.token == token)
    return [RegistrationToken(*row) for row in conn.execute(query)]


def change_registration_token(conn: Connection, token: str, values: dict[str, int | None]) -> None:
    """Set `uses_allowed`, `expires_ms`, or both."""
    conn.execute(update(registration_tokens).where(registration_tokens.c.token == token).values(**values))


def delete_registration_token(conn: Connection, token: str) -> bool:
    """Delete a token; False if there is none."""
    return conn.execute(delete(registration_tokens).where(registration_tokens.c.token == token)).rowcount == 1


def is_registration_token_valid(conn: Connection, token: str, now_ms: int) -> bool:
    """Say whether another account may be made with a token."""
    return conn.execute(select(registration_tokens.c.token).where(_usable(token, now_ms))).first() is not None


def use_registration_token(conn: Connection, token: str, now_ms: int) -> bool:
    """Count one account made with a token; False if it may not be used any more."""
    result = conn.execute(
        update(registration_tokens)
        .where(_usable(token, now_ms))
        .values(completed=registration_tokens.c.completed + 1)
    )
    return result.rowcount == 1


def _usable(token: str, now_ms: int) -> ColumnElement[bool]:
    return (
        (registration_tokens.c.token == token)
        & or_(registration_tokens.c.expires_ms.is_(None), registration_tokens.c.expires_ms > now_ms)
        & or_(
            registration_tokens.c.uses_allowed.is_(None),
            registration_tokens.c.uses_allowed > registration_tokens.c.completed,
        )
    )
