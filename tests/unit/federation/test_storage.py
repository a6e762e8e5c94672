"""The tables as migrations make them, and the queries about what destinations were not told yet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from federation.storage import fetching, inbound, outgoing
from federation.storage.destinations import DestinationRow, load_destinations, store_destinations
from federation.storage.inbound import StagedPdu
from federation.storage.outgoing import UNKNOWN, OutgoingEvent, Presence
from federation.storage.tables import metadata, room_server
from servicekit.database import create_engine
from servicekit.database.testing import schema_differences

A, B = "a.example", "b.example"
FAR = 10**9


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    with engine.begin() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def test_the_migrations_make_these_tables(tmp_path: Path) -> None:
    assert schema_differences(metadata, "federation.storage.migrations", tmp_path) == []


def store(conn: Connection, *events: tuple[int, str] | tuple[int, str, str, str]) -> None:
    outgoing.store_events(
        conn,
        [
            OutgoingEvent(item[0], item[1], f"${item[0]}", b"{}", *(item[2:] if len(item) > 2 else ()))
            for item in events
        ],
        1000,
    )


def pending(conn: Connection, server: str, after: int = 0) -> list[int]:
    return [event.position for event in outgoing.load_pending(conn, server, after, FAR, 100)]


def test_a_server_is_told_what_happens_while_it_is_in_the_room(conn: Connection) -> None:
    outgoing.note_joined(conn, "!r", A, 10)
    outgoing.note_joined(conn, "!r", B, 25)
    outgoing.note_left(conn, "!r", A, 30)
    store(conn, (5, "!r"), (10, "!r"), (20, "!r"), (30, "!r"), (40, "!r"), (50, "!other"))
    assert pending(conn, A) == [20, 30]
    assert pending(conn, B) == [30, 40]
    assert pending(conn, A, after=20) == [30]
    assert pending(conn, "c.example") == []
    outgoing.note_joined(conn, "!r", A, 45)
    store(conn, (60, "!r"))
    assert pending(conn, A) == [60]


def test_who_an_event_came_from_is_not_told_and_who_it_is_about_is(conn: Connection) -> None:
    outgoing.note_joined(conn, "!r", A, 1)
    outgoing.note_joined(conn, "!r", B, 1)
    store(conn, (10, "!r", A, ""), (20, "!r", "", "invited.example"))
    assert pending(conn, A) == [20]
    assert pending(conn, B) == [10, 20]
    assert pending(conn, "invited.example") == [20]


def test_after_an_outage_the_newest_of_each_room(conn: Connection) -> None:
    for room in ("!r", "!s"):
        outgoing.note_joined(conn, room, A, 1)
    store(conn, *((position, "!r" if position % 2 else "!s") for position in range(10, 90)))
    newest = outgoing.load_newest_by_room(conn, A, 0, FAR, 100)
    assert [event.position for event in newest] == [88, 89]
    assert outgoing.count_pending_rooms(conn, A, 0, FAR) == (2, 1000)
    assert outgoing.count_pending_rooms(conn, A, 89, FAR) == (0, 0)
    assert outgoing.prune_events(conn, 2000) == 78
    assert pending(conn, A) == [88, 89]


def test_who_is_behind(conn: Connection) -> None:
    for server in (A, B):
        outgoing.note_joined(conn, "!r", server, 1)
    store(conn, (10, "!r"), (20, "!r", "", "invited.example"))
    store_destinations(conn, [DestinationRow(A, sent_position=20)])
    outgoing.store_edu(conn, "edu.example", "one", b"{}", 1)
    outgoing.store_edu(conn, UNKNOWN, "two", b"{}", 1)
    assert outgoing.load_behind(conn) == [B, "edu.example", "invited.example"]


def test_servers_that_were_asked_for_replace_what_was_known(conn: Connection) -> None:
    outgoing.note_joined(conn, "!r", A, 5)
    outgoing.note_joined(conn, "!r", UNKNOWN, 30)
    assert outgoing.load_unknown_rooms(conn) == {"!r": Presence(30, None)}
    outgoing.replace_servers(conn, "!r", [B], Presence(30, None))
    assert outgoing.load_unknown_rooms(conn) == {}
    rows = {
        row.server_name: (row.joined_position, row.left_position) for row in conn.execute(select(room_server))
    }
    assert rows == {A: (5, 30), B: (30, None)}
    outgoing.note_all_left(conn, "!r", 40)
    store(conn, (50, "!r"))
    assert pending(conn, B) == []


def test_who_was_in_a_room_that_was_left_at_once_is_found_out_and_told(conn: Connection) -> None:
    outgoing.note_joined(conn, "!r", UNKNOWN, 30)
    outgoing.note_all_left(conn, "!r", 40)
    stay = Presence(30, 40)
    assert outgoing.load_unknown_rooms(conn) == {"!r": stay}
    assert outgoing.load_a_server(conn, "!r") is None
    outgoing.replace_servers(conn, "!r", [A, B], stay)
    assert outgoing.load_unknown_rooms(conn) == {}
    assert outgoing.load_room_servers(conn, "!r") == {A: stay, B: stay}
    store(conn, (35, "!r"), (50, "!r"))
    assert pending(conn, A) == [35]


def test_an_answer_about_an_earlier_stay_does_not_count_for_the_next(conn: Connection) -> None:
    outgoing.note_joined(conn, "!r", UNKNOWN, 30)
    outgoing.note_all_left(conn, "!r", 40)
    (stay,) = outgoing.load_unknown_rooms(conn).values()
    outgoing.note_joined(conn, "!r", UNKNOWN, 60)
    outgoing.replace_servers(conn, "!r", [A], stay)
    assert outgoing.load_unknown_rooms(conn) == {"!r": Presence(60, None)}


def test_a_durable_edu_is_made_once_and_spread(conn: Connection) -> None:
    for _ in range(2):
        outgoing.store_edu(conn, UNKNOWN, "output:5", b'{"a":1}', 1)
    (edu,) = outgoing.load_edus(conn, UNKNOWN, 10)
    outgoing.spread_edu(conn, edu, [A, B, A], 2)
    assert outgoing.load_edus(conn, UNKNOWN, 10) == []
    for server in (A, B):
        (copy,) = outgoing.load_edus(conn, server, 10)
        assert copy.edu_json == b'{"a":1}'
        assert outgoing.count_edus(conn, server) == 1
        outgoing.delete_edus(conn, [copy.id])
        assert outgoing.count_edus(conn, server) == 0


def test_destinations_are_kept(conn: Connection) -> None:
    rows = [DestinationRow(A, 3, 5000, "no answer", 100, 70), DestinationRow(B)]
    store_destinations(conn, rows)
    assert load_destinations(conn) == rows
    changed = DestinationRow(A, 0, 0, "", 200, 90)
    store_destinations(conn, [changed])
    assert load_destinations(conn) == [changed, rows[1]]


def test_staged_pdus_in_order_once_until_they_are_judged(conn: Connection) -> None:
    pdus = [StagedPdu(f"$e{number}", "!r", "10", A, b"{}") for number in (3, 1, 2)]
    inbound.stage_pdus(conn, pdus, 1000)
    inbound.stage_pdus(conn, pdus[:1], 2000)
    assert inbound.load_staged(conn, 1001, 10) == pdus
    assert inbound.load_staged(conn, 1000, 10) == []
    inbound.unstage_pdus(conn, ["$e3", "$e2"])
    assert inbound.count_staged(conn) == 1


def test_a_transaction_is_remembered_with_its_answer(conn: Connection) -> None:
    inbound.begin_transaction(conn, A, "1", 1000)
    inbound.begin_transaction(conn, A, "1", 2000)
    assert inbound.load_response(conn, A, "1") is None
    inbound.finish_transaction(conn, A, "1", b"{}")
    assert inbound.load_response(conn, A, "1") == b"{}"
    assert inbound.load_response(conn, B, "1") is None
    assert inbound.note_messages(conn, A, ["m", "n", "m"], 1000) == [True, True, False]
    assert inbound.note_messages(conn, A, ["o", "m"], 1000) == [True, False]
    inbound.forget_before(conn, 1001)
    assert inbound.load_response(conn, A, "1") is None


def test_what_is_wanted_and_when(conn: Connection) -> None:
    assert fetching.next_due_ms(conn) is None
    fetching.store_wanted(conn, "$w", "!r", ["$a"], A, 1000)
    fetching.store_wanted(conn, "$w", "!r", ["$a", "$b"], B, 1001)
    (wanted,) = fetching.load_due(conn, 0, 10)
    assert (wanted.missing_event_ids, wanted.origin) == (("$a", "$b"), B)
    fetching.note_attempt(conn, "$w", 1, 5000, "no")
    assert fetching.load_due(conn, 4999, 10) == []
    assert fetching.next_due_ms(conn) == 5000
    assert fetching.load_due(conn, 5000, 10)[0].attempts == 1
    fetching.forget_room(conn, "!r")
    assert fetching.next_due_ms(conn) is None
    fetching.note_pull_failed(conn, "backfill:!r", 2, 9000, "x")
    assert fetching.load_pull(conn, "backfill:!r") == (2, 9000)
    fetching.forget_pull(conn, "backfill:!r")
    assert fetching.load_pull(conn, "backfill:!r") == (0, 0)
