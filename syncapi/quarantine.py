"""One bad entry stops nobody else (architecture, rule 10): its room alone is put aside, and mended by a replay.

a message of OUTPUT that raises ──► dead letter (servicekit) ──► its room is quarantined
later messages of that room ──► dead letters, too, in order
`arbor log replay syncapi` ──► the rooms' letters are applied at their places, oldest first
    ──► clients' tokens lie behind those places: they get the room as if it were new (`told_anew`)
"""

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from servicekit.log.applying import is_transient, store_dead_letter
from servicekit.log.errors import StopFollowing
from servicekit.log.reader import LogMessage
from servicekit.log.subjects import OUTPUT, parse_subject
from servicekit.logging import get_logger
from syncapi.applying.batch import SnapshotEvents
from syncapi.consumer import Applier
from syncapi.live import now_ms
from syncapi.storage import accounts, dead_letters
from syncapi.storage.tables import log_tables

log = get_logger(__name__)


class Quarantined(Exception):
    """An earlier message of the same room could not be applied."""

    def __init__(self) -> None:
        super().__init__("an earlier message of the room could not be applied")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay; `told_anew`: rooms that changed."""

    applied: int
    failed: int
    told_anew: list[str]


def hold_back(
    connection: Connection, messages: Sequence[LogMessage], quarantined: frozenset[str]
) -> list[LogMessage]:
    """Put the messages of quarantined rooms aside and return the others."""
    rest: list[LogMessage] = []
    epoch = dead_letters.load_epoch(connection)
    for message in messages:
        if _about(message) in quarantined:
            store_dead_letter(connection, log_tables, OUTPUT, epoch, message, Quarantined(), now_ms=now_ms())
        else:
            rest.append(message)
    return rest


def _about(message: LogMessage) -> str:
    try:
        return parse_subject(message.subject).id
    except ValueError:
        return ""


def replay(
    connection: Connection, applier: Applier, ids: Iterable[int], snapshots: SnapshotEvents
) -> Replayed:
    """Apply dead letters again, room by room; a room whose letter fails again stays as it is from there.

    Raises:
        SnapshotWanted: a snapshot is missing in `snapshots`.
    """
    rooms: dict[str, list[dead_letters.Letter]] = {}
    for letter in dead_letters.load_letters(connection, ids):
        rooms.setdefault(letter.about, []).append(letter)
    applied = failed = 0
    changed: list[str] = []
    for about, letters in rooms.items():
        done = _replay_in_order(connection, applier, letters, snapshots)
        applied += done
        failed += len(letters) - done
        if done and about.startswith("!"):
            changed.append(about)
            dead_letters.store_told_anew(connection, about, accounts.load_position(connection)[1])
    applier.forget()
    return Replayed(applied, failed, changed)


def _replay_in_order(
    connection: Connection,
    applier: Applier,
    letters: Sequence[dead_letters.Letter],
    snapshots: SnapshotEvents,
) -> int:
    for number, letter in enumerate(letters):
        try:
            with connection.begin_nested():
                applier.apply(connection, [letter], snapshots)
        except StopFollowing:
            raise
        except Exception as error:
            if is_transient(error):
                raise
            log.warning("replay_failed", letter=letter.id, about=letter.about, error=repr(error))
            trace = "".join(traceback.format_exception(error))
            dead_letters.note_failure(connection, letter.id, f"{type(error).__name__}: {error}", trace)
            return number
        dead_letters.delete_letter(connection, letter.id)
    return len(letters)
