"""Every table of the RoomServer.

Events, rooms, snapshots and state keys are known by numbers inside the database (`..._nid`, `..._id`);
`ids` hands them out in blocks. An event's auth events always have smaller numbers than the event, so numbers
are a topological order of the auth graph.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
)

from servicekit.database import new_metadata
from servicekit.log.tables import add_log_tables, add_outbox_tables

metadata = new_metadata()

# A row number of SQLite itself only under the very type INTEGER; otherwise a second tree.
_Nid = BigInteger().with_variant(Integer, "sqlite")

log_tables = add_log_tables(metadata)
outbox_tables = add_outbox_tables(metadata)

partition = Table(
    "partition",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="0 to partitions - 1"),
    Column("owner", Text, nullable=False, comment="address of the process that owns it; empty: nobody"),
    Column("address", Text, nullable=False, comment="gRPC address of the owner; empty: nobody"),
    Column("epoch", BigInteger, nullable=False, comment="counts owners; 0: never owned"),
    Column("lease_until", BigInteger, nullable=False, comment="milliseconds since 1970; 0: free"),
    Column("input_epoch", String(32), nullable=False, comment="INPUT's epoch; empty: nothing read yet"),
    Column("input_position", BigInteger, nullable=False, comment="last INPUT sequence judged; 0: none"),
    Column(
        "output_no", BigInteger, nullable=False, comment="last number given to an OUTPUT message; 0: none"
    ),
)

id_block = Table(
    "id_block",
    metadata,
    Column("name", String(16), primary_key=True, comment="event, room, snapshot or key"),
    Column("next_id", BigInteger, nullable=False, comment="the first number that nobody has reserved"),
)

room = Table(
    "room",
    metadata,
    Column("nid", _Nid, primary_key=True, autoincrement=False),
    Column("room_id", Text, nullable=False, unique=True),
    Column("version", String(32), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("heads", LargeBinary, nullable=False, comment="packed numbers of the forward extremities"),
    Column("snapshot_id", BigInteger, nullable=False, comment="the current state; 0: none"),
    Column("joined", Integer, nullable=False, comment="members with membership join"),
    Column("invited", Integer, nullable=False, comment="members with membership invite"),
    Column("local_joined", Integer, nullable=False, comment="joined members of this deployment"),
    Column("state_entries", Integer, nullable=False, comment="entries of current state"),
    Column("participation", BigInteger, nullable=False, comment="counts up each time we are back; 0: never"),
    Column("participating", Boolean, nullable=False, comment="a local user is joined"),
    Column("quarantined_ms", BigInteger, nullable=False, comment="since when; 0: not quarantined"),
    Column("last_output_no", BigInteger, nullable=False, comment="of its last OUTPUT message; 0: none"),
    Column(
        "partial_join",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="the join whose state lacks members still; 0: the state is whole",
    ),
)

room_server = Table(
    "room_server",
    metadata,
    Column("room_nid", BigInteger, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column(
        "joined",
        Integer,
        nullable=False,
        comment="its joined users, 1 where another server told of it; rows with 0 are deleted",
    ),
    sqlite_with_rowid=False,
)

event = Table(
    "event",
    metadata,
    Column("nid", _Nid, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("room_nid", BigInteger, nullable=False),
    Column("status", SmallInteger, nullable=False, comment="EventStatus of query.proto; never WAITING"),
    Column("placement", SmallInteger, nullable=False, comment="Placement of output.proto; 0: told nobody"),
    Column("key_id", BigInteger, nullable=False, comment="its state key; 0: not a state event"),
    Column("depth", BigInteger, nullable=False),
    Column("origin_server_ts", BigInteger, nullable=False),
    Column("snapshot_before", BigInteger, nullable=False, comment="0: none or unknown"),
    Column("snapshot_after", BigInteger, nullable=False, comment="0: none or unknown"),
    Column("output_no", BigInteger, nullable=False, comment="message that told it; 0: none"),
    Column("output_index", SmallInteger, nullable=False, comment="entry in that message"),
    Column("redacted_by", BigInteger, nullable=False, comment="the redaction's number; 0: not redacted"),
    Column("prev", LargeBinary, nullable=False, comment="packed numbers of known prev events"),
    Column("auth", LargeBinary, nullable=False, comment="packed numbers of auth events, implied create too"),
    Column("rejection", LargeBinary, nullable=True, comment="arbor.log.v1.Rejection; NULL: accepted"),
    Index("ix_event_room_ts", "room_nid", "origin_server_ts"),
)

event_body = Table(
    "event_body",
    metadata,
    Column("nid", _Nid, primary_key=True, autoincrement=False),
    Column("pdu", LargeBinary, nullable=False, comment="canonical JSON; the redacted form once redacted"),
)

state_key = Table(
    "state_key",
    metadata,
    Column("id", _Nid, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("state_key", Text, nullable=False),
    Index("uq_state_key_type_state_key", "type", "state_key", unique=True),
)

current_state = Table(
    "current_state",
    metadata,
    Column("room_nid", BigInteger, primary_key=True, autoincrement=False),
    Column("key_id", BigInteger, primary_key=True, autoincrement=False),
    Column("event_nid", BigInteger, nullable=False),
    Column(
        "membership", SmallInteger, nullable=False, comment="0: not a member event; see states.MEMBERSHIPS"
    ),
    Index("ix_current_state_key_id", "key_id"),
    sqlite_with_rowid=False,
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", _Nid, primary_key=True, autoincrement=False),
    Column("room_nid", BigInteger, nullable=False),
    Column("base_id", BigInteger, nullable=False, comment="what `delta` is relative to; 0: the empty state"),
    Column(
        "number", Integer, nullable=False, comment="in its chain; based on the one at number & (number-1)"
    ),
    Column("delta", LargeBinary, nullable=False, comment="packed (key id, event number; 0: removed) pairs"),
    Index("ix_snapshot_room_nid", "room_nid"),
)

told_snapshot = Table(
    "told_snapshot",
    metadata,
    Column("snapshot_id", _Nid, primary_key=True, autoincrement=False, comment="readers are referred to it"),
    Column("room_nid", BigInteger, nullable=False),
    Index("ix_told_snapshot_room_nid", "room_nid"),
)

resolved_snapshot = Table(
    "resolved_snapshot",
    metadata,
    Column("room_nid", BigInteger, primary_key=True, autoincrement=False),
    Column(
        "hash", LargeBinary, primary_key=True, comment="of the snapshot it was made from, and the changes"
    ),
    Column("snapshot_id", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

auth_chain = Table(
    "auth_chain",
    metadata,
    Column("event_nid", _Nid, primary_key=True, autoincrement=False),
    Column("chain_id", BigInteger, nullable=False, comment="number of the chain's first event"),
    Column("seq", Integer, nullable=False, comment="place in the chain, from 1"),
    Index("uq_auth_chain_chain_id_seq", "chain_id", "seq", unique=True),
)

auth_chain_link = Table(
    "auth_chain_link",
    metadata,
    Column("chain_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("to_chain", BigInteger, primary_key=True, autoincrement=False),
    Column("to_seq", Integer, nullable=False, comment="reached in that chain, with all before it"),
    sqlite_with_rowid=False,
)

transaction_key = Table(
    "transaction_key",
    metadata,
    Column("hash", String(32), primary_key=True, comment="of user, device, endpoint, room and txn id"),
    Column("event_nid", BigInteger, nullable=False, comment="the event that the first attempt made"),
    Column("created_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

output_message = Table(
    "output_message",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("output_no", BigInteger, primary_key=True, autoincrement=False),
    Column("room_nid", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=True, comment="on OUTPUT; NULL: not known yet"),
    Column(
        "skeleton", LargeBinary, nullable=False, comment="OutputMessage without what `event` can give back"
    ),
    Index("ix_output_message_sequence", "sequence"),
    Index("ix_output_message_room_nid", "room_nid"),
    sqlite_with_rowid=False,
)

missing_prev = Table(
    "missing_prev",
    metadata,
    Column("room_nid", BigInteger, primary_key=True, autoincrement=False),
    Column("prev_event_id", Text, primary_key=True),
    Column("event_nid", BigInteger, primary_key=True, autoincrement=False, comment="the backward extremity"),
    sqlite_with_rowid=False,
)

pending_redaction = Table(
    "pending_redaction",
    metadata,
    Column("target_event_id", Text, primary_key=True, comment="not here yet"),
    Column("redaction_nid", BigInteger, primary_key=True, autoincrement=False),
    Column("room_nid", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

waiting_event = Table(
    "waiting_event",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("room_id", Text, nullable=False),
    Column("origin", SmallInteger, nullable=False, comment="EventOrigin of input.proto"),
    Column("origin_server", Text, nullable=False),
    Column("room_version", String(32), nullable=False),
    Column("pdu", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index("ix_waiting_event_room_id", "room_id"),
)

waiting_for = Table(
    "waiting_for",
    metadata,
    Column("missing_event_id", Text, primary_key=True),
    Column("waiting_event_id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

outlier_membership = Table(
    "outlier_membership",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("room_version", String(32), nullable=False),
    Column("membership", SmallInteger, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("pdu", LargeBinary, nullable=False),
    Column("stripped", LargeBinary, nullable=False, comment="JSON array of stripped events"),
    Index("ix_outlier_membership_user_id", "user_id"),
    Index("ix_outlier_membership_event_id", "event_id"),
)

import_job = Table(
    "import_job",
    metadata,
    Column("import_id", Text, primary_key=True),
    Column("room_id", Text, nullable=False),
    Column("room_version", String(32), nullable=False),
    Column(
        "room_nid",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="of its events; `room` may have no such row before the commit. 0: none yet",
    ),
    Column("last_part", Integer, nullable=False),
    Column("events", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False, comment="when the last part of the room came"),
)

import_page = Table(
    "import_page",
    metadata,
    Column("import_id", Text, primary_key=True),
    Column("page", Integer, primary_key=True, autoincrement=False, comment="from 1, in order"),
    Column(
        "state",
        LargeBinary,
        nullable=False,
        comment="packed (key id, event number, membership) triples: entries of the room's state",
    ),
    sqlite_with_rowid=False,
)

import_event = Table(
    "import_event",
    metadata,
    Column("import_id", Text, primary_key=True),
    Column(
        "event_id", Text, primary_key=True, comment="came before one of its auth events, so is not stored"
    ),
    Column("is_state", Boolean, nullable=False, comment="part of the state; else of its auth chain only"),
    Column("pdu", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

erasure = Table(
    "erasure",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column(
        "output_no",
        BigInteger,
        primary_key=True,
        autoincrement=False,
        comment="message that told of the cause",
    ),
    Column("room_id", Text, nullable=False),
    Column("event_ids", LargeBinary, nullable=False, comment="JSON array; empty: what `event` has no more"),
    Column("whole_room", Boolean, nullable=False, comment="all that was told before goes"),
    Column("input_sequence", BigInteger, nullable=False, comment="on INPUT the events stand up to here"),
    sqlite_with_rowid=False,
)

meta = Table(
    "meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)
