"""No threads in threads (client-server API, "Validation of `m.thread` relationships").

NOTSPEC: a plain reply, which has `m.relates_to` without a `rel_type`, may begin a thread: clients do so.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from clientapi.rooms.queries import RoomQueries
from servicekit.errors import MatrixError

MAX_REMEMBERED: Final = 10_000


class ThreadRoots:
    """Looks whether events may be the root of a thread. What is one stays one, and is remembered."""

    def __init__(self, queries: RoomQueries) -> None:
        self._queries = queries
        self._roots: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def check(self, room_id: str, content: Mapping[str, Any]) -> None:
        """Check an event that may be part of a thread. A root that is not known here is not looked into.

        Raises:
            MatrixError: M_UNKNOWN (400), it would begin a thread at an event that relates to another.
        """
        relation = content.get("m.relates_to")
        if not isinstance(relation, dict) or relation.get("rel_type") != "m.thread":
            return
        root_id = relation.get("event_id")
        if not isinstance(root_id, str):
            return
        if (room_id, root_id) in self._roots:
            self._roots.move_to_end((room_id, root_id))
            return
        root = await self._queries.event(room_id, root_id)
        if root is None:
            return
        related = root.content.get("m.relates_to")
        if isinstance(related, dict) and isinstance(related.get("rel_type"), str):
            raise MatrixError("M_UNKNOWN", 400, "A thread cannot begin at an event that relates to another")
        self._roots[room_id, root_id] = None
        if len(self._roots) > MAX_REMEMBERED:
            self._roots.popitem(last=False)
