"""Every table of the federation service. Times are milliseconds since 1970."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, Table, Text

from servicekit.database import new_metadata
from servicekit.log.tables import add_log_tables, add_outbox_tables

metadata = new_metadata()
log_tables = add_log_tables(metadata)
outbox_tables = add_outbox_tables(metadata)

# -- keys of other servers ---------------------------------------------------------------------------------

remote_key = Table(
    "remote_key",
    metadata,
    Column("server_name", Text, primary_key=True, comment="whose key"),
    Column("key_id", Text, primary_key=True, comment="like ed25519:abc"),
    Column("public_key", LargeBinary, nullable=False, comment="its 32 bytes"),
    Column("valid_until_ms", BigInteger, nullable=False, comment="until when it may have signed"),
    Column(
        "expired_ms",
        BigInteger,
        comment="an old key: it signs nothing made after this; NULL: a key in use",
    ),
    Column("fetched_ms", BigInteger, nullable=False, comment="when the server last told it"),
)

remote_key_response = Table(
    "remote_key_response",
    metadata,
    Column("server_name", Text, primary_key=True, comment="whose keys"),
    Column("response_json", LargeBinary, nullable=False, comment="the answer as signed, for notary queries"),
    Column("fetched_ms", BigInteger, nullable=False, comment="when it was fetched"),
    Column("valid_until_ms", BigInteger, nullable=False, comment="its valid_until_ts, at most 7 days later"),
)

# -- receiving ---------------------------------------------------------------------------------------------

inbound_transaction = Table(
    "inbound_transaction",
    metadata,
    Column("origin", Text, primary_key=True, comment="who sent it"),
    Column("txn_id", Text, primary_key=True, comment="its id there"),
    Column("response_json", LargeBinary, comment="the answer given; NULL: still being worked on"),
    Column("received_ms", BigInteger, nullable=False, index=True, comment="when it came first"),
)

staged_pdu = Table(
    "staged_pdu",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True, comment="order of arrival"),
    Column("event_id", Text, nullable=False, unique=True, comment="the event"),
    Column("room_id", Text, nullable=False, index=True, comment="its room"),
    Column("room_version", Text, nullable=False, comment="its room's version"),
    Column("origin", Text, nullable=False, comment="the server that sent it"),
    Column("pdu_json", LargeBinary, nullable=False, comment="as checked, canonical JSON"),
    Column("received_ms", BigInteger, nullable=False, comment="when it came"),
    comment="events of other servers that the RoomServer has not judged yet",
)

wanted_event = Table(
    "wanted_event",
    metadata,
    Column("waiting_event_id", Text, primary_key=True, comment="the event that waits"),
    Column("room_id", Text, nullable=False, index=True, comment="its room"),
    Column("missing_json", LargeBinary, nullable=False, comment="JSON list of the events it waits for"),
    Column("origin", Text, nullable=False, comment="the server that sent the waiting event"),
    Column("attempts", Integer, nullable=False, default=0, comment="tries that did not help"),
    Column("next_try_ms", BigInteger, nullable=False, index=True, comment="0: now"),
    Column("cause", Text, nullable=False, default="", comment="why the last try did not help"),
    Column("created_ms", BigInteger, nullable=False, comment="when it was first wanted"),
)

failed_pull = Table(
    "failed_pull",
    metadata,
    Column("subject", Text, primary_key=True, comment="an event id, or backfill:<room id>"),
    Column("attempts", Integer, nullable=False, comment="failures in a row"),
    Column("next_try_ms", BigInteger, nullable=False, index=True, comment="not asked for before"),
    Column("cause", Text, nullable=False, comment="the last error in one line"),
)

seen_message = Table(
    "seen_message",
    metadata,
    Column("origin", Text, primary_key=True, comment="the server that sent it"),
    Column("message_id", Text, primary_key=True, comment="the to-device message's id there"),
    Column("received_ms", BigInteger, nullable=False, index=True, comment="when it came"),
)

device_list = Table(
    "device_list",
    metadata,
    Column("user_id", Text, primary_key=True, comment="a user of another server"),
    Column("stream_ids_json", LargeBinary, nullable=False, comment="JSON list of the last changes known"),
    Column(
        "gaps", Integer, nullable=False, default=0, comment="counts what calls for the whole list; 0: none"
    ),
    Column("attempts", Integer, nullable=False, default=0, comment="tries to get the list that failed"),
    Column("next_try_ms", BigInteger, nullable=False, index=True, comment="0: now; meaningless without gaps"),
    Column("cause", Text, nullable=False, default="", comment="why the last try failed"),
    Column("updated_ms", BigInteger, nullable=False, index=True, comment="when something last came"),
    comment="how far the device lists of other servers' users are known without a gap",
)

# -- sending -----------------------------------------------------------------------------------------------

destination = Table(
    "destination",
    metadata,
    Column("server_name", Text, primary_key=True, comment="the other server"),
    Column("failures", Integer, nullable=False, default=0, comment="failures since the last success"),
    Column("next_try_ms", BigInteger, nullable=False, default=0, comment="0: now"),
    Column("last_error", Text, nullable=False, default="", comment="in one line; empty: none"),
    Column("last_success_ms", BigInteger, nullable=False, default=0, comment="0: never"),
    Column("sent_position", BigInteger, nullable=False, default=0, comment="told everything up to here"),
    Column("in_flight_txn", Text, comment="id of the transaction being sent; NULL: none"),
)

room_server = Table(
    "room_server",
    metadata,
    Column("room_id", Text, primary_key=True, comment="the room"),
    Column("server_name", Text, primary_key=True, comment="a server with a joined user, or that had one"),
    Column("joined_position", BigInteger, nullable=False, comment="its first event position there"),
    Column("left_position", BigInteger, comment="the last one it is told; NULL: it is in the room"),
    Index("ix_room_server_server_name", "server_name"),
)

outgoing_event = Table(
    "outgoing_event",
    metadata,
    Column("position", BigInteger, primary_key=True, comment="event position on OUTPUT"),
    Column("room_id", Text, nullable=False, comment="the room"),
    Column("event_id", Text, nullable=False, comment="the event"),
    Column("pdu_json", LargeBinary, nullable=False, comment="as signed"),
    Column("exclude", Text, nullable=False, default="", comment="the server it came from; empty: none"),
    Column("also", Text, nullable=False, default="", comment="a server told besides those in the room"),
    Column("created_ms", BigInteger, nullable=False, comment="when it was committed"),
    Index("ix_outgoing_event_room_id_position", "room_id", "position"),
)

relayed_event = Table(
    "relayed_event",
    metadata,
    Column("event_id", Text, primary_key=True, comment="an event that another server had us put into a room"),
    Column("origin", Text, nullable=False, comment="that server"),
    Column("created_ms", BigInteger, nullable=False, comment="when"),
)

outgoing_edu = Table(
    "outgoing_edu",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True, comment="order"),
    Column("server_name", Text, nullable=False, comment="the destination"),
    Column("source", Text, nullable=False, unique=True, comment="the entry it was made of; made once"),
    Column("edu_json", LargeBinary, nullable=False, comment="the EDU"),
    Column("created_ms", BigInteger, nullable=False, comment="when"),
    Index("ix_outgoing_edu_server_name_id", "server_name", "id"),
)

# -- joining -----------------------------------------------------------------------------------------------

join_job = Table(
    "join_job",
    metadata,
    Column("job_id", Text, primary_key=True, comment="also the import's id"),
    Column("user_id", Text, nullable=False, comment="who joins"),
    Column("room_id", Text, nullable=False, comment="what"),
    Column("room_version", Text, nullable=False, default="", comment="empty: not known yet"),
    Column("resident", Text, nullable=False, default="", comment="who took the join; empty: nobody yet"),
    Column("join_event_json", LargeBinary, comment="the join as signed by all; NULL: not sent yet"),
    Column("answer_json", LargeBinary, comment="send_join's answer until it is imported; NULL: not here"),
    Column("state", Text, nullable=False, comment="asking, sent, importing, completing, done or failed"),
    Column("error", Text, nullable=False, default="", comment="why it, or its last try, failed"),
    Column("partial", Boolean, nullable=False, default=False, comment="members were left out of the state"),
    Column("created_ms", BigInteger, nullable=False, comment="when it began"),
    Column(
        "attempts",
        Integer,
        nullable=False,
        default=0,
        server_default="0",
        comment="tries to complete it that failed",
    ),
    Column("next_try_ms", BigInteger, nullable=False, default=0, server_default="0", comment="0: now"),
)
