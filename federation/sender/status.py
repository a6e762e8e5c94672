"""How every destination stands, for `arbor federation status` and whoever else asks."""

from arbor.federation.v1 import federation_pb2 as pb
from federation.clock import NowMs
from federation.sender.destinations import Destinations
from federation.sender.sender import Sender
from federation.storage import outgoing as storage
from federation.storage.destinations import DestinationRow
from servicekit.database import Database
from servicekit.log.subjects import sequence_of_position


class DestinationStatus:
    """Puts together what memory and the database know."""

    def __init__(self, destinations: Destinations, sender: Sender, database: Database, now_ms: NowMs) -> None:
        self._destinations = destinations
        self._sender = sender
        self._database = database
        self._now_ms = now_ms

    async def list(self, server_name: str = "") -> pb.ListDestinationsResponse:
        """Return one destination, or all by name."""
        known = {row.server_name: row for row in self._destinations.all()}
        for name in await self._database.read(storage.load_behind):
            known.setdefault(name, DestinationRow(name))
        rows = [row for name, row in sorted(known.items()) if not server_name or name == server_name]
        return pb.ListDestinationsResponse(
            destinations=[await self._destination(row) for row in rows],
            output_sequence=sequence_of_position(self._sender.position),
        )

    async def _destination(self, row: DestinationRow) -> pb.Destination:
        name = row.server_name
        rooms, oldest_ms = await self._database.read(
            storage.count_pending_rooms, name, row.sent_position, self._sender.position
        )
        edus = await self._database.read(storage.count_edus, name)
        queue = self._sender.queue_of(name)
        if row.next_try_ms > self._now_ms():
            state = pb.DESTINATION_STATE_BACKING_OFF
        elif queue is not None and queue.behind:
            state = pb.DESTINATION_STATE_CATCHING_UP
        elif queue is not None and not queue.is_empty:
            state = pb.DESTINATION_STATE_SENDING
        else:
            state = pb.DESTINATION_STATE_IDLE
        return pb.Destination(
            server_name=name,
            state=state,
            pending_rooms=rooms,
            pending_edus=edus,
            oldest_pending_ms=oldest_ms,
            failures=row.failures,
            last_error=row.last_error,
            last_success_ms=row.last_success_ms,
            next_try_ms=row.next_try_ms,
            output_sequence=sequence_of_position(row.sent_position),
        )
