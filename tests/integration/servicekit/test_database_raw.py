"""Statements handed to the driver: one text for SQLite and PostgreSQL, the same answers."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from servicekit.database import create_engine
from servicekit.database.raw import Sql

PUT = Sql("INSERT INTO note (id, text) VALUES (?, ?)")
ALL = Sql("SELECT id, text FROM note ORDER BY id")
BY_TEXT = Sql("SELECT id FROM note WHERE text IN ? AND id <> ? ORDER BY id")


@pytest.fixture
def conn(database_url: str) -> Iterator[sa.Connection]:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)")
        yield connection
    engine.dispose()


def test_reading_and_writing(conn: sa.Connection) -> None:
    assert PUT.many(conn, []) == 0
    assert PUT.many(conn, [(1, "a")]) == 1
    assert PUT.many(conn, ((number, "b") for number in (2, 3))) == 2
    assert PUT.change(conn, 4, None) == 1
    assert [tuple(row) for row in ALL.rows(conn)] == [(1, "a"), (2, "b"), (3, "b"), (4, None)]
    assert tuple(ALL.row(conn)) == (1, "a")
    assert ALL.rows(conn), "a row taken from many leaves nothing open"
    assert Sql("SELECT id FROM note WHERE id = ?").row(conn, 9) is None
    assert Sql("UPDATE note SET text = ? WHERE id IN ?").change(conn, "c", [2, 3, 9]) == 2


def test_a_list_is_one_parameter(conn: sa.Connection) -> None:
    texts = ["a", "ü", '"', "\\u0000", "", "'; --"]
    PUT.many(conn, list(enumerate(texts)))
    assert [row[0] for row in BY_TEXT.rows(conn, texts, 2)] == [0, 1, 3, 4, 5]
    assert BY_TEXT.rows(conn, [], 2) == []
    assert len(BY_TEXT.rows(conn, [*texts, *map(str, range(5000))], -1)) == 6


def test_a_per_cent_sign_is_one(conn: sa.Connection) -> None:
    PUT.many(conn, [(1, "50%"), (2, "50")])
    assert [row[0] for row in Sql("SELECT id FROM note WHERE text LIKE '%\\%' ESCAPE '\\'").rows(conn)] == [1]
    assert [row[0] for row in Sql("SELECT id FROM note WHERE text = ?").rows(conn, "50%")] == [1]


def test_a_nul_is_stored_and_found_the_same_way(conn: sa.Connection) -> None:
    PUT.many(conn, [(1, "a"), (2, "a\0b")])
    PUT.change(conn, 3, "\0")
    assert [tuple(row) for row in ALL.rows(conn)] == [(1, "a"), (2, "a\ufffdb"), (3, "\ufffd")]
    assert [row[0] for row in BY_TEXT.rows(conn, ["a\0b", "\0"], 9)] == [2, 3], "not what stands before a NUL"
    assert BY_TEXT.rows(conn, ["a\0"], 9) == []
    assert Sql("SELECT id FROM note WHERE text = ?").row(conn, "a\0b")[0] == 2
    assert Sql("UPDATE note SET text = 'c' WHERE text = ?").change(conn, "a\0b") == 1


@pytest.mark.parametrize("how", ["rows", "row", "change", "many"])
def test_errors_are_those_of_sqlalchemy(conn: sa.Connection, how: str) -> None:
    PUT.change(conn, 1, "a")
    parameters = [[(2, "b"), (1, "c")]] if how == "many" else [1, "again"]
    with pytest.raises(sa.exc.IntegrityError):
        getattr(PUT, how)(conn, *parameters)
