"""The follower of OUTPUT, and what happens when the log no longer has what was not read yet."""

from collections.abc import Callable

from sqlalchemy import Connection

from federation.clock import NowMs
from federation.rooms import Rooms
from federation.sender.consumer import Heard, OutputHandler
from federation.sender.sender import Sender
from federation.storage import outgoing
from federation.storage.outgoing import UNKNOWN
from federation.storage.tables import log_tables
from servicekit.database import Database
from servicekit.log.applying import PositionRow
from servicekit.log.connection import LogConnection
from servicekit.log.errors import PositionLost
from servicekit.log.follower import Follower
from servicekit.log.subjects import OUTPUT, POSITION_FACTOR, event_position
from servicekit.logging import get_logger

log = get_logger("federation.output")

SUBJECTS = ("room.output.>", "room.receipt.>", "user.to_device.>", "user.device_list.>")


class OutputFollower:
    """Follows OUTPUT for the sender and the fetcher.

    Args:
        on_heard: called on the loop with what each batch asks for.
        sender: is told where it stands.
    """

    def __init__(
        self,
        connection: LogConnection,
        database: Database,
        rooms: Rooms,
        is_local: Callable[[str], bool],
        now_ms: NowMs,
        on_heard: Callable[[Heard], None],
        sender: Sender,
    ) -> None:
        self._connection = connection
        self._database = database
        self._rooms = rooms
        self._on_heard = on_heard
        self._sender = sender
        self._handler = OutputHandler(is_local, now_ms)

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            follower = Follower(
                self._connection,
                OUTPUT,
                SUBJECTS,
                self._database,
                log_tables,
                self._handler,
                on_committed=self._on_heard,
                on_loaded=self._on_loaded,
            )
            try:
                await follower.run()
            except PositionLost as error:
                log.warning("output_lost", reason=str(error), first=error.first_sequence)
                await self._begin_anew(error)

    def _on_loaded(self, sequence: int) -> None:
        self._handler.forget()
        self._sender.start_at(event_position(sequence, POSITION_FACTOR - 1) if sequence else 0)

    async def _begin_anew(self, error: PositionLost) -> None:
        """Go on from what the log has: who is in which room is asked of the RoomServer instead.

        Events of ours that were lost from the log before we read them reach the others as missing events,
        which they ask for when the next one comes.
        """
        sequence = max(error.first_sequence - 1, 0)
        position = event_position(sequence, POSITION_FACTOR - 1)
        rooms = [room.room_id for room in await self._rooms.rooms([]) if room.participating]

        def store(conn: Connection) -> None:
            for room_id in rooms:
                outgoing.note_joined(conn, room_id, UNKNOWN, position)
            PositionRow(log_tables.position, OUTPUT).reset(conn, error.epoch, sequence)

        await self._database.write(store)
        self._on_heard(Heard(through=position, changed_rooms=set(rooms), unknown_rooms=True))
