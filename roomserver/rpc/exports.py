"""`Export`: every OUTPUT message made anew from the database, in order of position.

The message is what the log has, or had, with redacted events in their redacted form. An export ends at a
sequence below which nothing is missing: messages that are committed and whose place is not known yet come
after it, and whoever asks finds them on the log.
"""

from sqlalchemy import Connection

from arbor.log.v1.output_pb2 import OutputMessage
from roomserver.input import outputs as output_messages
from roomserver.storage import events, outputs, rooms
from servicekit.database.raw import Sql
from servicekit.log.subjects import room_output_subject

_UNPLACED = Sql("SELECT DISTINCT partition FROM output_message WHERE sequence IS NULL")
_LAST_OF = Sql("SELECT MAX(sequence) FROM output_message WHERE partition = ?")

PAGE = 200


def read_complete_through(conn: Connection) -> int:
    """The sequence up to which all that was told has its place."""
    through = outputs.load_last_sequence(conn)
    for (partition,) in _UNPLACED.rows(conn):
        row = _LAST_OF.row(conn, partition)
        through = min(through, int(row[0] or 0))
    return through


def read_page(
    conn: Connection,
    after: int,
    through: int,
    room_nids: set[int] | None,
    room_ids: set[str],
    partitions: int,
) -> tuple[list[tuple[int, bytes, str]], int]:
    """The next messages, (sequence, encoded, subject), and the sequence to go on after (0: that was all)."""
    rows = outputs.load_outputs(conn, after, through, PAGE)
    if not rows:
        return [], 0
    last = rows[-1][3]
    if room_nids is not None:
        rows = [row for row in rows if row[2] in room_nids or row[2] == 0]
    skeletons = [(row, OutputMessage.FromString(row[4])) for row in rows]
    wanted = {event_id for _, skeleton in skeletons for event_id in output_messages.wanted_events(skeleton)}
    bodies = {event_id: pdu for event_id, (_, pdu) in events.load_full_by_id(conn, wanted).items()}
    room_rows = rooms.load_rooms_by_nid(conn, {row[2] for row in rows})
    made = []
    for (partition, output_no, room_nid, sequence, _), skeleton in skeletons:
        room = room_rows.get(room_nid)
        room_id = room.room_id if room is not None else skeleton.room_id
        if room_nids is not None and room is None and room_id not in room_ids:
            continue
        version = room.version if room is not None else ""
        message = output_messages.fill(skeleton, bodies, room_id, version, partition, output_no)
        made.append((sequence, message.SerializeToString(), room_output_subject(room_id, partitions)))
    return made, last


def read_room_nids(conn: Connection, room_ids: list[str]) -> set[int]:
    """Numbers of rooms."""
    return {row.nid for row in rooms.load_rooms(conn, room_ids).values()}
