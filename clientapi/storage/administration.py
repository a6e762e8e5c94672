"""What administrators ask about accounts, and the flags that they set."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, Text, cast, func, or_, select, update

from clientapi.storage.tables import devices, forgotten_rooms, profile_fields, users

Flag = Literal["admin", "suspended", "locked"]
Order = Literal["name", "creation_ts", "last_seen_ts", "admin", "is_guest", "deactivated", "locked"]


@dataclass(frozen=True, slots=True)
class Account:
    """An account as administrators see it. Profile fields are JSON values."""

    user_id: str
    created_ms: int
    admin: bool
    guest: bool
    deactivated: bool
    suspended: bool
    locked: bool
    erased_ms: int | None
    display_name_json: bytes | None
    avatar_url_json: bytes | None
    last_seen_ms: int | None


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts are wanted; None: both kinds."""

    user_id_part: str | None = None
    name_part: str | None = None
    guests: bool | None = None
    deactivated: bool | None = None
    admins: bool | None = None
    locked: bool | None = None


def load_account(conn: Connection, user_id: str) -> Account | None:
    """Return an account, or None."""
    row = conn.execute(_accounts().where(users.c.user_id == user_id)).one_or_none()
    return None if row is None else Account(*row)


def load_accounts(
    conn: Connection, wanted: AccountFilter, order: Order, *, backwards: bool, start: int, limit: int
) -> tuple[list[Account], int]:
    """Return a page of the accounts that are wanted, and how many there are in all."""
    query = _accounts()
    if wanted.user_id_part is not None:
        query = query.where(users.c.user_id.icontains(wanted.user_id_part, autoescape=True))
    if wanted.name_part is not None:
        query = query.where(_name_holds(conn, wanted.name_part))
    for column, value in (
        (users.c.guest, wanted.guests),
        (users.c.deactivated, wanted.deactivated),
        (users.c.admin, wanted.admins),
        (users.c.locked, wanted.locked),
    ):
        if value is not None:
            query = query.where(column.is_(value))
    total = conn.execute(select(func.count()).select_from(query.order_by(None).subquery())).scalar_one()
    by = {
        "name": users.c.user_id,
        "creation_ts": users.c.created_ms,
        "last_seen_ts": _last_seen(),
        "admin": users.c.admin,
        "is_guest": users.c.guest,
        "deactivated": users.c.deactivated,
        "locked": users.c.locked,
    }[order]
    query = query.order_by(by.desc() if backwards else by.asc(), users.c.user_id).offset(start).limit(limit)
    return [Account(*row) for row in conn.execute(query)], total


def search_accounts(conn: Connection, term: str, limit: int) -> list[Account]:
    """Return active accounts of people whose localpart, id or display name holds a term."""
    holds = _name_holds(conn, term.removeprefix("@"))
    if term.startswith("@") and ":" in term:
        holds = users.c.user_id == term.lower()
    query = (
        _accounts()
        .where(holds, users.c.deactivated.is_(False), users.c.locked.is_(False), users.c.guest.is_(False))
        .order_by(users.c.user_id)
        .limit(limit)
    )
    return [Account(*row) for row in conn.execute(query)]


def _name_holds(conn: Connection, part: str) -> ColumnElement[bool]:
    # Of the id the localpart only: every id holds the server's name.
    escaped = part.lower().replace("/", "//").replace("%", "/%").replace("_", "/_")
    raw = _profile_field("displayname")
    name = func.convert_from(raw, "UTF8") if conn.dialect.name == "postgresql" else cast(raw, Text)
    return or_(
        users.c.user_id.like(f"@%{escaped}%:%", escape="/"),
        func.lower(name).like(f"%{escaped}%", escape="/"),
    )


def store_flag(conn: Connection, user_id: str, flag: Flag, value: bool) -> None:
    """Set a flag of an account."""
    conn.execute(update(users).where(users.c.user_id == user_id).values({flag: value}))


def is_forgotten_by_any(conn: Connection, room_id: str) -> bool:
    """Say whether any local user forgot a room."""
    found = conn.execute(
        select(forgotten_rooms.c.user_id).where(forgotten_rooms.c.room_id == room_id).limit(1)
    )
    return found.first() is not None


def _accounts() -> Select[Any]:
    return select(
        users.c.user_id,
        users.c.created_ms,
        users.c.admin,
        users.c.guest,
        users.c.deactivated,
        users.c.suspended,
        users.c.locked,
        users.c.erased_ms,
        _profile_field("displayname"),
        _profile_field("avatar_url"),
        _last_seen(),
    )


def _profile_field(name: str) -> ScalarSelect[Any]:
    return (
        select(profile_fields.c.value_json)
        .where(profile_fields.c.user_id == users.c.user_id, profile_fields.c.name == name)
        .correlate(users)
        .scalar_subquery()
    )


def _last_seen() -> ScalarSelect[Any]:
    return (
        select(func.max(devices.c.last_seen_ms))
        .where(devices.c.user_id == users.c.user_id)
        .correlate(users)
        .scalar_subquery()
    )
