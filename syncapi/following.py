"""Between the log's follower and the tables: a batch applied, snapshots fetched when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from arbor.roomserver.v1 import query_pb2
from servicekit.database import Database
from servicekit.log.reader import LogMessage
from syncapi.applied import Applied
from syncapi.consumer import Applier, SnapshotWanted
from syncapi.quarantine import Replayed, hold_back, replay

SNAPSHOT_TIMEOUT_S = 3600.0


class OutputHandler:
    """What the follower does with a batch: see `consumer.Applier`.

    It stands between follower and database too: a snapshot that a message refers to is fetched when applying
    asks for it, outside of the transaction, which is then tried again.
    """

    def __init__(self, applier: Applier, database: Database, rooms: Any) -> None:
        self._applier = applier
        self._database = database
        self._rooms = rooms
        self._snapshots: dict[int, list[tuple[str, bytes]]] = {}

    def apply_batch(self, conn: Connection, messages: Sequence[LogMessage]) -> Applied:
        """Apply messages in order, except those of quarantined rooms."""
        quarantined = self._applier.load_quarantined(conn)
        rest = hold_back(conn, messages, quarantined) if quarantined else messages
        applied = self._applier.apply(conn, rest, self._snapshots)
        if quarantined and messages:
            applied.sequence = messages[-1].sequence
        return applied

    def skim(self, messages: Sequence[LogMessage]) -> Applied | None:
        """See `servicekit.log.applying.Delaying`."""
        return self._applier.hold(messages)

    def write_skimmed(self, conn: Connection) -> None:
        """See `servicekit.log.applying.Delaying`."""
        self._applier.write_held(conn)

    def skimmed_written(self) -> None:
        """See `servicekit.log.applying.Delaying`."""
        self._applier.held_written()

    async def replay(self, ids: Sequence[int]) -> Replayed:
        """Apply dead letters again (`quarantine.replay`)."""
        replayed: Replayed = await self.write(self._replay, ids)
        return replayed

    def _replay(self, conn: Connection, ids: Sequence[int]) -> Replayed:
        return replay(conn, self._applier, ids, self._snapshots)

    async def write(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Run a unit of work of the follower's."""
        while True:
            try:
                done = await self._database.write(work, *args)
            except SnapshotWanted as wanted:
                id_ = wanted.snapshot_id
                self._snapshots[id_] = await fetch_snapshot(self._rooms, id_)
            else:
                self._snapshots.clear()
                return done


async def fetch_snapshot(rooms: Any, snapshot_id: int) -> list[tuple[str, bytes]]:
    """Return the state events of a snapshot: (event id, PDU)."""
    found: list[tuple[str, bytes]] = []
    async for part in rooms.GetSnapshot(
        query_pb2.GetSnapshotRequest(snapshot_id=snapshot_id), timeout=SNAPSHOT_TIMEOUT_S
    ):
        found += [(event.event_id, event.pdu_json) for event in part.state]
    return found
