"""One annotation of a kind: no second reaction of a user with the same key (spec, "Avoiding duplicate annotations").

Told of local users' annotations alone, by what they sent here: others' come as they are. Two that are sent at the
same moment may both go through, as two from two servers would; clients count them once.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from clientapi.accounts.sessions import Session
from clientapi.rooms.queries import RoomQueries
from clientapi.storage import annotations
from clientapi.storage.annotations import SentAnnotation
from servicekit.database import Database
from servicekit.errors import MatrixError


class Annotations:
    """See the module."""

    def __init__(self, db: Database, queries: RoomQueries) -> None:
        self._db = db
        self._queries = queries

    async def check(
        self, session: Session, room_id: str, type_: str, content: Mapping[str, Any], txn_id: str
    ) -> bytes | None:
        """Check that an event is no second annotation of its kind.

        Returns:
            What `note` wants once the event is sent; None: it is no annotation.

        Raises:
            MatrixError: M_DUPLICATE_ANNOTATION.
        """
        relation = content.get("m.relates_to")
        if not isinstance(relation, dict) or relation.get("rel_type") != "m.annotation":
            return None
        target, key = relation.get("event_id"), relation.get("key")
        if not isinstance(target, str) or not isinstance(key, str):
            return None
        kind = orjson.dumps([room_id, target, session.user_id, type_, key])
        annotation_hash = hashlib.sha256(kind).digest()
        earlier = await self._db.read(annotations.load_annotation, annotation_hash)
        if earlier is None or (txn_id and (earlier.device_id, earlier.txn_id) == (session.device_id, txn_id)):
            # None of the kind, or the same request once more, which finds its own event.
            return annotation_hash
        if await self._queries.stands(room_id, earlier.event_id):
            raise MatrixError("M_DUPLICATE_ANNOTATION", 400, "You have sent this annotation already")
        return annotation_hash

    async def note(self, annotation_hash: bytes, session: Session, event_id: str, txn_id: str) -> None:
        """Note that an annotation was sent."""
        sent = SentAnnotation(event_id, session.device_id, txn_id)
        await self._db.write(annotations.store_annotation, annotation_hash, sent)
