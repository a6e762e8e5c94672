"""Derived tables made anew: from the owners' exports, by the same code that follows the log.

    fetch      both exports into a spool file, for they are read over the network
    replace    one transaction: empty the derived tables, apply the spool, keep the primary tables,
               set the position to follow from

Readers see the old tables until the transaction commits, and a crash leaves them as they were. Positions are
those that the entries have, or had, on the log, so that clients' tokens go on.

    first of the log ...... position to follow from ...... export complete ...... end of the log
                            |  entries of rooms: dropped, the export had them
                            |  receipts, to-device messages: applied, if they were not before
"""

import asyncio
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from sqlalchemy import Connection

from arbor.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from arbor.log.v1 import output_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from servicekit.config import Config
from servicekit.database import Database
from servicekit.grpc import channel_to
from servicekit.log.applying import PositionRow
from servicekit.log.connection import LogConnection
from servicekit.log.follower import Follower
from servicekit.log.subjects import OUTPUT
from servicekit.logging import get_logger
from syncapi.consumer import Applier, SnapshotEvents
from syncapi.following import OutputHandler, fetch_snapshot
from syncapi.storage import accounts, dead_letters, receipts
from syncapi.storage.tables import derived_tables, log_tables, metadata

log = get_logger(__name__)

BATCH = 200
EXPORT_TIMEOUT_S = 24 * 3600.0
_HEADER = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Exported:
    """A message of an export."""

    sequence: int
    data: bytes


@dataclass(slots=True)
class Exports:
    """What both owners told. `rooms` is a file of (sequence, length, message)."""

    rooms: IO[bytes]
    rooms_through: int
    accounts: list[bytes]
    accounts_through: int
    snapshots: dict[int, list[tuple[str, bytes]]]


async def fetch_exports(rooms: Any, account_service: Any, spool: IO[bytes]) -> Exports:
    """Read both exports. `rooms` and `account_service` are stubs of the owners' services."""
    told: list[bytes] = []
    accounts_through = 0
    async for part in account_service.Export(accounts_pb2.ExportRequest(), timeout=EXPORT_TIMEOUT_S):
        if part.message:
            told.append(part.message)
        accounts_through = max(accounts_through, part.complete_through)
    rooms_through = 0
    snapshot_ids: set[int] = set()
    async for part in rooms.Export(query_pb2.ExportRequest(), timeout=EXPORT_TIMEOUT_S):
        if part.message:
            spool.write(_HEADER.pack(part.sequence, len(part.message)))
            spool.write(part.message)
            snapshot_ids |= snapshots_in(part.message)
        rooms_through = max(rooms_through, part.complete_through)
    snapshots = {id_: await fetch_snapshot(rooms, id_) for id_ in sorted(snapshot_ids)}
    return Exports(spool, rooms_through, told, accounts_through, snapshots)


def snapshots_in(data: bytes) -> set[int]:
    """Return the snapshots that a message refers to."""
    message = output_pb2.OutputMessage.FromString(data)
    return {
        entry.state_rewritten.snapshot_id for entry in message.entries if entry.HasField("state_rewritten")
    }


def _spooled(spool: IO[bytes]) -> Iterator[Exported]:
    spool.seek(0)
    while header := spool.read(_HEADER.size):
        sequence, length = _HEADER.unpack(header)
        yield Exported(sequence, spool.read(length))


def _split_accounts(messages: list[bytes], sequence: int) -> tuple[list[Exported], list[Exported]]:
    """Return what is applied before the rooms (settings, devices) and after them (what was forgotten)."""
    before: list[Exported] = []
    after: list[Exported] = []
    for data in messages:
        message = output_pb2.OutputMessage.FromString(data)
        forgotten = any(entry.HasField("room_forgotten") for entry in message.entries)
        (after if forgotten else before).append(Exported(sequence, data))
    return before, after


def replace_tables(
    connection: Connection,
    is_local: Callable[[str], bool],
    exports: Exports,
    epoch: str,
    first_sequence: int,
    last_sequence: int,
) -> int:
    """Make the derived tables anew; returns the position to follow from.

    Args:
        first_sequence, last_sequence: of OUTPUT as it is now.
    """
    was_at = max(accounts.load_position(connection)[1], accounts.load_marker(connection, "primary"))
    # Set again at the end: applying the exports must not change what the inbox has had.
    primary = accounts.load_marker(connection, "primary")
    for table in reversed(derived_tables()):
        connection.execute(table.delete())
    connection.execute(log_tables.output_no.delete())
    accounts.store_marker(connection, "rooms_through", 0)
    applier = Applier(is_local)
    before, after = _split_accounts(exports.accounts, exports.accounts_through)
    _apply(connection, applier, iter(before), exports.snapshots)
    _apply(connection, applier, _spooled(exports.rooms), exports.snapshots)
    _apply(connection, applier, iter(after), exports.snapshots)
    # Rooms are whole again; of what was put aside for them only receipts stand nowhere else.
    accounts.store_marker(connection, "rooms_through", exports.rooms_through)
    letters = [letter for letter in dead_letters.load_letters(connection) if letter.about.startswith("!")]
    _apply(
        connection,
        applier,
        (
            Exported(letter.sequence, letter.data)
            for letter in letters
            if letter.sequence <= exports.rooms_through
        ),
        exports.snapshots,
    )
    dead_letters.delete_letters_of_rooms(connection)
    applier.read_receipts(connection, receipts.load_all(connection))
    position = min(exports.rooms_through, exports.accounts_through or exports.rooms_through, was_at)
    if position < first_sequence - 1 or position > last_sequence:
        # What the log no longer has cannot be followed; rooms and accounts have it by the export.
        position = max(first_sequence - 1, min(position, last_sequence))
    accounts.store_marker(connection, "primary", primary)
    accounts.store_marker(connection, "rooms_through", exports.rooms_through)
    # Tokens never go back: what was known before is made up from the log before anything is answered.
    accounts.store_marker(connection, "read_floor", min(was_at, last_sequence))
    accounts.store_marker(connection, "generation", accounts.load_marker(connection, "generation") + 1)
    PositionRow(log_tables.position, OUTPUT).reset(connection, epoch, position)
    return position


def _apply(
    connection: Connection, applier: Applier, messages: Iterator[Exported], snapshots: SnapshotEvents
) -> None:
    while batch := list(islice(messages, BATCH)):
        applier.apply(connection, batch, snapshots)
        applier.committed()


async def rebuild_database(
    database: Database,
    is_local: Callable[[str], bool],
    rooms: Any,
    account_service: Any,
    connection: LogConnection,
) -> int:
    """Make a database's derived tables anew; returns the position to follow from."""
    with tempfile.TemporaryFile() as spool:
        exports = await fetch_exports(rooms, account_service, spool)
        stream = await connection.load_stream(OUTPUT)
        if stream is None:
            raise LookupError("there is no stream OUTPUT")
        position = await database.write(
            replace_tables, is_local, exports, stream.epoch, stream.first_sequence, stream.last_sequence
        )
        log.info("rebuilt", rooms_through=exports.rooms_through, position=position)
        return position


async def catch_up(database: Database, applier: Applier, rooms: Any, connection: LogConnection) -> None:
    """Follow the log up to where the tables were before the rebuild."""
    floor = await database.read(accounts.load_marker, "read_floor")
    handler = OutputHandler(applier, database, rooms)
    follower = Follower(
        connection, OUTPUT, [], handler, log_tables, handler, on_committed=lambda _: applier.committed()
    )
    async with asyncio.TaskGroup() as group:
        running = group.create_task(follower.run())
        while not await follower.wait_for(floor, 60):
            log.info("catching_up", position=follower.position, through=floor)
        await follower.flush(60)
        running.cancel()


async def rebuild(config: Config) -> str:
    """Do it for `arbor rebuild syncapi`; the owners' services have to run, this one may."""
    database = Database(
        config.database_url("syncapi"), metadata, "syncapi.storage.migrations", durability="relaxed"
    )
    connection = await LogConnection.connect(config, "syncapi")
    try:
        database.migrate()
        await connection.wait_for_streams()
        query: Any = query_pb2_grpc.QueryServiceStub(channel_to(config, "roomserver", caller="syncapi"))
        account_service: Any = accounts_pb2_grpc.AccountsServiceStub(
            channel_to(config, "clientapi", caller="syncapi")
        )
        applier = Applier(lambda user_id: config.is_local(user_id.partition(":")[2]))
        position = await rebuild_database(database, applier.is_local, query, account_service, connection)
        await catch_up(database, applier, query, connection)
    finally:
        await connection.close()
        database.close()
    return f"syncapi is rebuilt; it follows the log from {position}"
