"""How far other servers' users' device lists are known: which changes came, and whose list has a gap."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from federation.storage.tables import device_list

# So many of the last changes can be referred to. Servers name the one before.
MAX_STREAM_IDS = 50


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """An `m.device_list_update` of a user. `prev_ids` are the changes that it comes after."""

    user_id: str
    stream_id: int
    prev_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A user whose list has to be asked for. `gaps` tells whether more was missed meanwhile."""

    user_id: str
    gaps: int
    attempts: int


@dataclass(slots=True)
class _Known:
    stream_ids: list[int]
    gaps: int = 0
    new: bool = False


def note_changes(conn: Connection, changes: Sequence[DeviceChange], now_ms: int) -> list[bool]:
    """Note changes in their order; says of each whether it is new.

    A change that comes after one that never came calls for the whole list. So does every change while the list
    is being asked for: the answer may be older than the change.
    """
    known = _load(conn, {change.user_id for change in changes})
    fresh = []
    for change in changes:
        row = known.setdefault(change.user_id, _Known([], new=True))
        if change.stream_id in row.stream_ids:
            fresh.append(False)
            continue
        fresh.append(True)
        if row.gaps or not set(change.prev_ids) <= set(row.stream_ids):
            row.gaps += 1
        row.stream_ids = [*row.stream_ids, change.stream_id][-MAX_STREAM_IDS:]
    _store(conn, known, now_ms)
    return fresh


def _load(conn: Connection, user_ids: set[str]) -> dict[str, _Known]:
    table = device_list
    rows = conn.execute(
        select(table.c.user_id, table.c.stream_ids_json, table.c.gaps).where(table.c.user_id.in_(user_ids))
    )
    return {row.user_id: _Known(orjson.loads(row.stream_ids_json), row.gaps) for row in rows}


def _store(conn: Connection, known: dict[str, _Known], now_ms: int) -> None:
    def values(user_id: str, row: _Known) -> dict[str, object]:
        return {
            "user_id_": user_id,
            "stream_ids_json": orjson.dumps(row.stream_ids),
            "gaps": row.gaps,
            "updated_ms": now_ms,
        }

    changed = [values(user_id, row) for user_id, row in known.items() if not row.new]
    if changed:
        names = ("stream_ids_json", "gaps", "updated_ms")
        conn.execute(
            update(device_list)
            .where(device_list.c.user_id == bindparam("user_id_"))
            .values({name: bindparam(name) for name in names}),
            changed,
        )
    made = [
        {"next_try_ms": 0, "attempts": 0, "cause": "", "user_id": made.pop("user_id_"), **made}
        for made in (values(user_id, row) for user_id, row in known.items() if row.new)
    ]
    if made:
        conn.execute(insert(device_list), made)


def load_incomplete(conn: Connection, now_ms: int, limit: int) -> list[Incomplete]:
    """Whose lists are to be asked for now, those that wait longest first."""
    table = device_list
    rows = conn.execute(
        select(table.c.user_id, table.c.gaps, table.c.attempts)
        .where(table.c.gaps > 0, table.c.next_try_ms <= now_ms)
        .order_by(table.c.next_try_ms, table.c.updated_ms)
        .limit(limit)
    )
    return [Incomplete(row.user_id, row.gaps, row.attempts) for row in rows]


def next_due_ms(conn: Connection) -> int | None:
    """When the next list is to be asked for; None: all are whole."""
    table = device_list
    query = select(table.c.next_try_ms).where(table.c.gaps > 0).order_by(table.c.next_try_ms).limit(1)
    return conn.execute(query).scalar_one_or_none()


def note_whole(conn: Connection, asked: Incomplete, stream_id: int, now_ms: int) -> None:
    """The list came whole, as it stood at a change. What came while it was on its way asks for it again."""
    table = device_list
    row = conn.execute(
        select(table.c.gaps, table.c.stream_ids_json).where(table.c.user_id == asked.user_id)
    ).first()
    if row is None:
        return
    values = {"attempts": 0, "next_try_ms": 0, "cause": "", "updated_ms": now_ms}
    if row.gaps == asked.gaps:
        # Later changes name this one, or one of those that came before.
        later = [known for known in orjson.loads(row.stream_ids_json) if known != stream_id]
        values |= {"gaps": 0, "stream_ids_json": orjson.dumps([*later, stream_id][-MAX_STREAM_IDS:])}
    conn.execute(update(table).where(table.c.user_id == asked.user_id).values(values))


def note_failed(conn: Connection, asked: Incomplete, next_try_ms: int, cause: str) -> None:
    """The list could not be had."""
    table = device_list
    conn.execute(
        update(table)
        .where(table.c.user_id == asked.user_id)
        .values(attempts=asked.attempts + 1, next_try_ms=next_try_ms, cause=cause[:500])
    )


def forget_user(conn: Connection, user_id: str) -> None:
    """The user's devices are no longer of interest."""
    conn.execute(delete(device_list).where(device_list.c.user_id == user_id))


def forget_before(conn: Connection, before_ms: int) -> None:
    """Drop users of whom nothing came for long; the next change asks for the whole list."""
    table = device_list
    conn.execute(delete(table).where(table.c.updated_ms < before_ms, table.c.gaps == 0))
