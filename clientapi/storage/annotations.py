"""Annotations (reactions, say) that local users have sent, to tell a second one of a kind."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from clientapi.storage.tables import annotations
from clientapi.storage.upsert import upsert


@dataclass(frozen=True, slots=True)
class SentAnnotation:
    """A row of `annotations`."""

    event_id: str
    device_id: str
    txn_id: str


def load_annotation(conn: Connection, annotation_hash: bytes) -> SentAnnotation | None:
    """Return the annotation of a kind that was sent last, or None."""
    row = conn.execute(
        select(annotations.c.event_id, annotations.c.device_id, annotations.c.txn_id).where(
            annotations.c.annotation_hash == annotation_hash
        )
    ).one_or_none()
    return None if row is None else SentAnnotation(*row)


def store_annotation(conn: Connection, annotation_hash: bytes, sent: SentAnnotation) -> None:
    """Note that an annotation was sent."""
    upsert(
        conn,
        annotations,
        {"annotation_hash": annotation_hash},
        {"event_id": sent.event_id, "device_id": sent.device_id, "txn_id": sent.txn_id},
    )
