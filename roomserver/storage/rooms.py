"""A room's row, and its servers."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from roomserver.storage.packing import pack_ids, unpack_ids
from servicekit.database.raw import Sql

_COLUMNS = (
    "nid, room_id, version, partition, heads, snapshot_id, joined, invited, local_joined, state_entries,"
    " participation, participating, quarantined_ms, last_output_no, partial_join"
)
_BY_ID = Sql(f"SELECT {_COLUMNS} FROM room WHERE room_id IN ?")
_BY_NID = Sql(f"SELECT {_COLUMNS} FROM room WHERE nid IN ?")
_ALL = Sql(f"SELECT {_COLUMNS} FROM room ORDER BY nid")
_STORE = Sql(
    f"INSERT INTO room ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (nid) DO UPDATE SET heads = excluded.heads, snapshot_id = excluded.snapshot_id,"
    " joined = excluded.joined, invited = excluded.invited, local_joined = excluded.local_joined,"
    " state_entries = excluded.state_entries, participation = excluded.participation,"
    " participating = excluded.participating, quarantined_ms = excluded.quarantined_ms,"
    " last_output_no = excluded.last_output_no, partial_join = excluded.partial_join"
)
_UPDATE = Sql(
    "UPDATE room SET heads = ?, snapshot_id = ?, joined = ?, invited = ?, local_joined = ?,"
    " state_entries = ?,"
    " participation = ?, participating = ?, quarantined_ms = ?, last_output_no = ?, partial_join = ?"
    " WHERE nid = ?"
)
_QUARANTINE = Sql("UPDATE room SET quarantined_ms = ? WHERE room_id = ?")
_QUARANTINED = Sql("SELECT room_id FROM room WHERE quarantined_ms > 0 ORDER BY room_id")
_SERVERS = Sql(
    "SELECT room_nid, server, joined FROM room_server WHERE room_nid IN ? ORDER BY room_nid, server"
)
_SERVER = Sql("SELECT server, joined FROM room_server WHERE room_nid = ? AND server IN ?")
_STORE_SERVER = Sql(
    "INSERT INTO room_server (room_nid, server, joined) VALUES (?, ?, ?)"
    " ON CONFLICT (room_nid, server) DO UPDATE SET joined = excluded.joined"
)
_DELETE_SERVER = Sql("DELETE FROM room_server WHERE room_nid = ? AND server = ?")
MOST_HEADS = 20
_MOST_HEADS = Sql(
    "SELECT room_id, heads FROM room WHERE length(heads) > 5 ORDER BY length(heads) DESC LIMIT ?"
)


@dataclass(slots=True)
class RoomRow:
    """One row; `heads` are event numbers."""

    nid: int
    room_id: str
    version: str
    partition: int
    heads: tuple[int, ...]
    snapshot_id: int
    joined: int
    invited: int
    local_joined: int
    state_entries: int
    participation: int
    participating: bool
    quarantined_ms: int
    last_output_no: int
    partial_join: int = 0

    def copy(self) -> "RoomRow":
        """Return a copy; `copy.copy` takes ten times as long, once for each room of each batch."""
        return RoomRow(
            self.nid,
            self.room_id,
            self.version,
            self.partition,
            self.heads,
            self.snapshot_id,
            self.joined,
            self.invited,
            self.local_joined,
            self.state_entries,
            self.participation,
            self.participating,
            self.quarantined_ms,
            self.last_output_no,
            self.partial_join,
        )


def _row(row: tuple[object, ...]) -> RoomRow:
    made = RoomRow(*row)  # type: ignore[arg-type]
    made.heads = unpack_ids(made.heads)  # type: ignore[arg-type]
    made.participating = bool(made.participating)
    return made


def load_rooms(conn: Connection, room_ids: Iterable[str]) -> dict[str, RoomRow]:
    """room id -> row, those unknown left out."""
    return {row[1]: _row(row) for row in _BY_ID.rows(conn, list(room_ids))}


def load_rooms_by_nid(conn: Connection, nids: Iterable[int]) -> dict[int, RoomRow]:
    """number -> row."""
    return {row[0]: _row(row) for row in _BY_NID.rows(conn, list(nids))}


def load_all_rooms(conn: Connection) -> list[RoomRow]:
    """Every room."""
    return [_row(row) for row in _ALL.rows(conn)]


def store_rooms(conn: Connection, new: Iterable[RoomRow], changed: Iterable[RoomRow]) -> None:
    """Write rows."""
    _STORE.many(
        conn,
        [
            (
                row.nid,
                row.room_id,
                row.version,
                row.partition,
                pack_ids(row.heads),
                row.snapshot_id,
                row.joined,
                row.invited,
                row.local_joined,
                row.state_entries,
                row.participation,
                row.participating,
                row.quarantined_ms,
                row.last_output_no,
                row.partial_join,
            )
            for row in new
        ],
    )
    _UPDATE.many(
        conn,
        [
            (
                pack_ids(row.heads),
                row.snapshot_id,
                row.joined,
                row.invited,
                row.local_joined,
                row.state_entries,
                row.participation,
                row.participating,
                row.quarantined_ms,
                row.last_output_no,
                row.partial_join,
                row.nid,
            )
            for row in changed
        ],
    )


def store_quarantine(conn: Connection, room_id: str, since_ms: int) -> int:
    """Quarantine a room (0: lift it); returns how many rooms that were."""
    return _QUARANTINE.change(conn, since_ms, room_id)


def load_quarantined(conn: Connection) -> list[str]:
    """Room ids in quarantine."""
    return [row[0] for row in _QUARANTINED.rows(conn)]


def load_servers(conn: Connection, room_nids: Iterable[int]) -> dict[int, dict[str, int]]:
    """room number -> server -> joined users."""
    found: dict[int, dict[str, int]] = {}
    for room_nid, server, joined in _SERVERS.rows(conn, list(room_nids)):
        found.setdefault(room_nid, {})[server] = joined
    return found


def load_server_counts(conn: Connection, room_nid: int, servers: Iterable[str]) -> dict[str, int]:
    """server -> joined users, of some servers of a room."""
    return {row[0]: row[1] for row in _SERVER.rows(conn, room_nid, list(servers))}


def store_server_counts(conn: Connection, counts: Iterable[tuple[int, str, int]]) -> None:
    """Write (room number, server, joined users)."""
    stored, deleted = [], []
    for room_nid, server, joined in counts:
        if joined > 0:
            stored.append((room_nid, server, joined))
        else:
            deleted.append((room_nid, server))
    _STORE_SERVER.many(conn, stored)
    _DELETE_SERVER.many(conn, deleted)


def load_most_heads(conn: Connection, limit: int = MOST_HEADS) -> dict[str, int]:
    """The rooms with most forward extremities, of those with several: room id -> how many."""
    found = {room_id: len(unpack_ids(heads)) for room_id, heads in _MOST_HEADS.rows(conn, limit)}
    return {room_id: count for room_id, count in found.items() if count > 1}
