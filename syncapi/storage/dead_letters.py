"""Messages of OUTPUT that could not be applied, and the rooms that are quarantined for them.

A room is quarantined as long as there is a dead letter of it: what comes later of that room becomes one, too,
since it builds on what is missing. The letters of a room are applied again together, in order.
"""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection

from servicekit.log.subjects import OUTPUT
from syncapi.storage.accounts import store_marker
from syncapi.storage.sql import row, rows, run

_TOLD_ANEW = "told_anew:"


class Letter(NamedTuple):
    """A dead letter, with what the applier needs of a message."""

    id: int
    about: str
    sequence: int
    data: bytes


def load_quarantined(connection: Connection) -> frozenset[str]:
    """Return the quarantined rooms."""
    return frozenset(
        about
        for (about,) in rows(connection, "SELECT DISTINCT about FROM dead_letter WHERE stream = ?", (OUTPUT,))
        if about.startswith("!")
    )


def load_letters(connection: Connection, ids: Iterable[int] = ()) -> list[Letter]:
    """Return dead letters in the order of OUTPUT: those with these ids and all of their rooms; without ids all."""
    found = [
        Letter(*values)
        for values in rows(
            connection,
            "SELECT id, about, sequence, data FROM dead_letter WHERE stream = ? ORDER BY sequence, entry_index",
            (OUTPUT,),
        )
    ]
    wanted = set(ids)
    if not wanted:
        return found
    about = {letter.about for letter in found if letter.id in wanted and letter.about.startswith("!")}
    return [letter for letter in found if letter.id in wanted or letter.about in about]


def delete_letter(connection: Connection, id_: int) -> None:
    """Delete a letter that has been applied."""
    run(connection, "DELETE FROM dead_letter WHERE id = ?", (id_,))


def delete_letters_of_rooms(connection: Connection) -> None:
    """Delete the letters of rooms, which have been made anew."""
    run(connection, "DELETE FROM dead_letter WHERE stream = ? AND about LIKE '!%'", (OUTPUT,))


def note_failure(connection: Connection, id_: int, error: str, trace: str) -> None:
    """Keep why a letter could still not be applied."""
    run(
        connection,
        "UPDATE dead_letter SET error = ?, traceback = ? WHERE id = ?",
        (error[:4000], trace[-20000:], id_),
    )


def store_told_anew(connection: Connection, room_id: str, sequence: int) -> None:
    """Note that clients with tokens up to a sequence may lack parts of a room: they get it as if it were new."""
    store_marker(connection, _TOLD_ANEW + room_id, sequence)


def load_told_anew(connection: Connection) -> dict[str, int]:
    """Return the rooms that clients get as if they were new -> up to which sequence of their token."""
    return {
        name.removeprefix(_TOLD_ANEW): value
        for name, value in rows(connection, "SELECT name, value FROM marker WHERE name LIKE 'told_anew:%'")
    }


def load_epoch(connection: Connection) -> str:
    """Return the epoch of OUTPUT in which the position counts."""
    found = row(connection, "SELECT epoch FROM log_position WHERE stream = ?", (OUTPUT,))
    return "" if found is None else str(found[0])
