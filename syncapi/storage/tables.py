"""The sync API's tables: *derived* ones, which exports and the log make anew, and *primary* ones.

A position is `OUTPUT sequence * 4096 + index of the entry`, ordered as things happened. Where a place of
its own is missing (state that came by snapshot), an event has a negative number, which is no position.

    positions      S ------ since ------ a ---- b ---- c ---- until ------> T
    room_state     the entry (type, state_key) held from `since_position` on and before `until_position`
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    text,
)

from servicekit.database import new_metadata
from servicekit.log.tables import add_log_tables

MAX_POSITION = 2**63 - 1
"""`until_position` of what still holds; `joined_until` of who is joined."""

metadata = new_metadata()
log_tables = add_log_tables(metadata)

_BigInt = BigInteger().with_variant(Integer, "sqlite")

event = Table(
    "event",
    metadata,
    Column("position", _BigInt, primary_key=True, autoincrement=False, comment="its place; negative: none"),
    Column("event_id", Text, nullable=False, unique=True),
    Column("room_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("state_key", Text, comment="NULL: no state event"),
    Column("sender", Text, nullable=False),
    Column("depth", _BigInt, nullable=False),
    Column("depth_before", _BigInt, nullable=False, comment="greatest depth told in the room before it"),
    Column("origin_server_ts", _BigInt, nullable=False, comment="milliseconds since 1970"),
    Column("placement", SmallInteger, nullable=False, comment="arbor.log.v1.Placement"),
    Column("visibility", Text, nullable=False, comment="history visibility before it"),
    Column("visibility_after", Text, comment="NULL: the same"),
    Column("flags", SmallInteger, nullable=False, comment="1: content has url, 2: redacted"),
    Column(
        "body", LargeBinary, nullable=False, comment="client JSON without room_id, unsigned and last brace"
    ),
    Column("unsigned", LargeBinary, comment="members of unsigned that all see, `,` first. NULL: none"),
    Column("txn_device", Text, comment="device that sent it with txn_id. NULL: none"),
    Column("txn_id", Text, comment="client's transaction id. NULL: none"),
    Column("notify_total", _BigInt, nullable=False, comment="running total of the room, with it"),
    Column("highlight_total", _BigInt, nullable=False, comment="running total of the room, with it"),
    Column("thread_id", Text, comment="root of its thread. NULL: main timeline"),
    info={"kind": "derived"},
)
Index(
    "ix_event_room_timeline",
    event.c.room_id,
    event.c.position,
    sqlite_where=text("placement = 1"),
    postgresql_where=text("placement = 1"),
)
Index("ix_event_room_depth", event.c.room_id, event.c.depth, event.c.position)

event_member = Table(
    "event_member",
    metadata,
    Column(
        "position",
        _BigInt,
        primary_key=True,
        autoincrement=False,
        comment="an event that is not in the timeline",
    ),
    Column("user_id", Text, primary_key=True),
    Column(
        "membership", Text, nullable=False, comment="the local user's membership in the state at the event"
    ),
    info={"kind": "derived"},
)

room = Table(
    "room",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("joined", Integer, nullable=False, comment="joined members now"),
    Column("invited", Integer, nullable=False, comment="invited members now"),
    Column("participation", _BigInt, nullable=False, comment="which stay of ours it is"),
    Column(
        "timeline_floor", _BigInt, nullable=False, comment="where that stay began; timelines do not cross it"
    ),
    Column("max_depth", _BigInt, nullable=False),
    Column("notify_total", _BigInt, nullable=False),
    Column("highlight_total", _BigInt, nullable=False),
    Column("last_position", _BigInt, nullable=False, comment="of the last event in the timeline; 0: none"),
    Column(
        "whole_since",
        _BigInt,
        nullable=False,
        server_default="0",
        comment="where its members came after a join with partial state; 2^63-1: not yet; 0: they never lacked",
    ),
    info={"kind": "derived"},
)
Index(
    "ix_room_whole_since",
    room.c.whole_since,
    sqlite_where=text("whole_since > 0"),
    postgresql_where=text("whole_since > 0"),
)

room_state = Table(
    "room_state",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("state_key", Text, primary_key=True),
    Column("since_position", _BigInt, primary_key=True, autoincrement=False),
    Column("until_position", _BigInt, nullable=False, comment="2^63-1: still holds"),
    Column("event_position", _BigInt, nullable=False, comment="the event's row"),
    Column("event_id", Text, nullable=False),
    Column("membership", Text, comment="for m.room.member. NULL otherwise"),
    info={"kind": "derived"},
)
Index("ix_room_state_until", room_state.c.room_id, room_state.c.until_position)
Index("ix_room_state_since", room_state.c.room_id, room_state.c.since_position)

user_room = Table(
    "user_room",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room_id", Text, primary_key=True),
    Column("membership", Text, nullable=False),
    Column("event_id", Text, nullable=False, comment="the membership event"),
    Column("position", _BigInt, nullable=False, comment="where the membership changed"),
    Column("joined_since", _BigInt, comment="where the last stay began. NULL: never joined"),
    Column("joined_until", _BigInt, comment="2^63-1: is joined. NULL: never joined"),
    Column("forgotten", Boolean, nullable=False),
    Column("stripped_state", LargeBinary, comment="JSON array for an invite or knock. NULL: none"),
    Column("read_position", _BigInt, nullable=False, comment="up to where the user has read"),
    Column("read_notify", _BigInt, nullable=False, comment="the room's total there"),
    Column("read_highlight", _BigInt, nullable=False, comment="the room's total there"),
    Column("extra_notify", _BigInt, nullable=False, comment="sum of the user's exceptions after it"),
    Column("extra_highlight", _BigInt, nullable=False, comment="sum of the user's exceptions after it"),
    info={"kind": "derived"},
)
Index("ix_user_room_room", user_room.c.room_id)

notification_exception = Table(
    "notification_exception",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room_id", Text, primary_key=True),
    Column("position", _BigInt, primary_key=True, autoincrement=False),
    Column("notify", SmallInteger, nullable=False, comment="difference from the class: -1, 0 or 1"),
    Column("highlight", SmallInteger, nullable=False, comment="difference from the class: -1, 0 or 1"),
    info={"kind": "derived"},
)

thread_event = Table(
    "thread_event",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("position", _BigInt, primary_key=True, autoincrement=False),
    Column("thread_id", Text, nullable=False, comment="the thread's root"),
    Column("sender", Text, nullable=False),
    Column("notify", SmallInteger, nullable=False, comment="what it added to the room's total: 0 or 1"),
    Column("highlight", SmallInteger, nullable=False, comment="what it added to the room's total: 0 or 1"),
    info={"kind": "derived"},
)

relation = Table(
    "relation",
    metadata,
    Column("child_position", _BigInt, primary_key=True, autoincrement=False),
    Column("child_id", Text, nullable=False),
    Column("room_id", Text, nullable=False),
    Column("parent_id", Text, nullable=False),
    Column("rel_type", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("sender", Text, nullable=False),
    info={"kind": "derived"},
)
Index("ix_relation_parent", relation.c.parent_id, relation.c.child_position)
Index("ix_relation_room_type", relation.c.room_id, relation.c.rel_type)

account_data = Table(
    "account_data",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room_id", Text, primary_key=True, comment="empty: global"),
    Column("type", Text, primary_key=True),
    Column("content", LargeBinary, comment="JSON. NULL: deleted"),
    Column("position", _BigInt, nullable=False),
    info={"kind": "derived"},
)
Index("ix_account_data_position", account_data.c.user_id, account_data.c.position)

device = Table(
    "device",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("device_id", Text, primary_key=True),
    info={"kind": "derived"},
)

erased_user = Table(
    "erased_user",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("erased_ms", _BigInt, nullable=False, comment="when; milliseconds since 1970"),
    info={"kind": "derived"},
)

device_list = Table(
    "device_list",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("position", _BigInt, nullable=False, comment="of the last change"),
    info={"kind": "derived"},
)
Index("ix_device_list_position", device_list.c.position)

receipt = Table(
    "receipt",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("receipt_type", Text, primary_key=True),
    Column("thread_id", Text, primary_key=True, comment="empty: unthreaded"),
    Column("event_id", Text, nullable=False),
    Column("timestamp_ms", _BigInt, nullable=False),
    Column("position", _BigInt, nullable=False),
    info={"kind": "primary"},
)
Index("ix_receipt_position", receipt.c.room_id, receipt.c.position)

to_device = Table(
    "to_device",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("device_id", Text, primary_key=True),
    Column("position", _BigInt, primary_key=True, autoincrement=False),
    Column("message", LargeBinary, nullable=False, comment="type, sender and content as JSON"),
    Column("message_id", Text, nullable=False, comment="empty: none"),
    info={"kind": "primary"},
)

marker = Table(
    "marker",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", _BigInt, nullable=False),
    info={"kind": "primary"},
)
"""`primary`: the sequence up to which the inbox was filled; `rooms_through`: up to which a rebuild had the
rooms; `read_floor`: which has to be reached before anything is answered; `generation`: counts rebuilds."""


def derived_tables() -> list[Table]:
    """Return the tables that a rebuild empties."""
    return [table for table in metadata.sorted_tables if table.info.get("kind") == "derived"]
