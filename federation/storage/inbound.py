"""Transactions of other servers, and what of them is not judged yet."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from federation.storage.tables import inbound_transaction, seen_message, staged_pdu


@dataclass(frozen=True, slots=True)
class StagedPdu:
    """A PDU that was checked and accepted for judging."""

    event_id: str
    room_id: str
    room_version: str
    origin: str
    pdu_json: bytes


def load_response(conn: Connection, origin: str, txn_id: str) -> bytes | None:
    """The answer given to a transaction; None: it was never answered."""
    table = inbound_transaction
    value = conn.execute(
        select(table.c.response_json).where(table.c.origin == origin, table.c.txn_id == txn_id)
    ).scalar_one_or_none()
    return None if value is None else bytes(value)


def begin_transaction(conn: Connection, origin: str, txn_id: str, now_ms: int) -> None:
    """Note that a transaction came; a second time changes nothing."""
    table = inbound_transaction
    known = conn.execute(
        select(table.c.origin).where(table.c.origin == origin, table.c.txn_id == txn_id)
    ).first()
    if known is None:
        conn.execute(insert(table).values(origin=origin, txn_id=txn_id, received_ms=now_ms))


def finish_transaction(conn: Connection, origin: str, txn_id: str, response_json: bytes) -> None:
    """Keep the answer to a transaction."""
    table = inbound_transaction
    conn.execute(
        update(table)
        .where(table.c.origin == origin, table.c.txn_id == txn_id)
        .values(response_json=response_json)
    )


def stage_pdus(conn: Connection, pdus: Sequence[StagedPdu], now_ms: int) -> None:
    """Keep PDUs until they are judged; those that are kept already stay as they are."""
    if not pdus:
        return
    table = staged_pdu
    ids = [pdu.event_id for pdu in pdus]
    known = set(conn.execute(select(table.c.event_id).where(table.c.event_id.in_(ids))).scalars())
    rows = {
        pdu.event_id: {
            "event_id": pdu.event_id,
            "room_id": pdu.room_id,
            "room_version": pdu.room_version,
            "origin": pdu.origin,
            "pdu_json": pdu.pdu_json,
            "received_ms": now_ms,
        }
        for pdu in pdus
        if pdu.event_id not in known
    }
    if rows:
        conn.execute(insert(table), list(rows.values()))


def unstage_pdus(conn: Connection, event_ids: Sequence[str]) -> None:
    """Drop PDUs that were judged."""
    table = staged_pdu
    for start in range(0, len(event_ids), 500):
        conn.execute(delete(table).where(table.c.event_id.in_(event_ids[start : start + 500])))


def load_staged(conn: Connection, received_before_ms: int, limit: int) -> list[StagedPdu]:
    """The oldest PDUs that nobody judged, in order of arrival."""
    table = staged_pdu
    rows = conn.execute(
        select(table.c.event_id, table.c.room_id, table.c.room_version, table.c.origin, table.c.pdu_json)
        .where(table.c.received_ms < received_before_ms)
        .order_by(table.c.id)
        .limit(limit)
    )
    return [
        StagedPdu(row.event_id, row.room_id, row.room_version, row.origin, bytes(row.pdu_json))
        for row in rows
    ]


def count_staged(conn: Connection) -> int:
    """How many PDUs are not judged yet."""
    return int(conn.execute(select(func.count()).select_from(staged_pdu)).scalar_one())


def note_messages(conn: Connection, origin: str, message_ids: Sequence[str], now_ms: int) -> list[bool]:
    """Note to-device messages of a server; False for each that came before."""
    table = seen_message
    query = select(table.c.message_id).where(table.c.origin == origin, table.c.message_id.in_(message_ids))
    known = set(conn.execute(query).scalars())
    fresh = []
    for message_id in message_ids:
        fresh.append(message_id not in known)
        known.add(message_id)
    rows = [
        {"origin": origin, "message_id": message_id, "received_ms": now_ms}
        for message_id, is_new in zip(message_ids, fresh, strict=True)
        if is_new
    ]
    if rows:
        conn.execute(insert(table), rows)
    return fresh


def forget_before(conn: Connection, before_ms: int) -> None:
    """Drop transactions and to-device ids older than a time."""
    for table in (inbound_transaction, seen_message):
        conn.execute(delete(table).where(table.c.received_ms < before_ms))
