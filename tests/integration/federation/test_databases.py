"""What the service stores comes to the same in SQLite and PostgreSQL."""

import asyncio

from sqlalchemy import Connection

from federation.storage import destinations, device_lists, inbound
from federation.storage.destinations import DestinationRow
from federation.storage.device_lists import DeviceChange
from federation.storage.tables import metadata
from servicekit.database import Database


def work(conn: Connection) -> None:
    eve = "@eve:x.example"
    first = [DeviceChange(eve, 1, ()), DeviceChange(eve, 5, (4,)), DeviceChange("@b:x.example", 1, ())]
    assert device_lists.note_changes(conn, first, 1) == [True, True, True]
    again = [DeviceChange(eve, 6, (5,)), DeviceChange(eve, 5, (4,))]
    assert device_lists.note_changes(conn, again, 1) == [True, False]
    [asked] = device_lists.load_incomplete(conn, 9, 9)
    assert asked.user_id == eve
    device_lists.note_failed(conn, asked, 50, "no answer")
    assert device_lists.next_due_ms(conn) == 50
    device_lists.note_whole(conn, asked, 6, 60)
    assert device_lists.next_due_ms(conn) is None
    device_lists.forget_before(conn, 50)
    assert device_lists.note_changes(conn, [DeviceChange(eve, 7, (6,))], 70) == [True]
    assert device_lists.next_due_ms(conn) is None

    assert inbound.note_messages(conn, "x.example", ["a", "b", "a"], 1) == [True, True, False]
    assert inbound.note_messages(conn, "x.example", ["b", "c"], 1) == [False, True]

    for failures in (1, 2):
        rows = [DestinationRow("x.example", failures), DestinationRow(f"y{failures}.example")]
        destinations.store_destinations(conn, rows)
    found = {row.server_name: row.failures for row in destinations.load_destinations(conn)}
    assert found == {"x.example": 2, "y1.example": 0, "y2.example": 0}


async def test_device_lists_messages_and_destinations(database_url: str) -> None:
    database = Database(database_url, metadata, "federation.storage.migrations")
    try:
        await asyncio.to_thread(database.migrate)
        await database.write(work)
    finally:
        database.close()
