"""The tables of clientapi's database. Times are milliseconds since 1970 unless a name says otherwise."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
)

from servicekit.database import new_metadata
from servicekit.log.tables import add_outbox_tables

metadata = new_metadata()
outbox_tables = add_outbox_tables(metadata)

users = Table(
    "users",
    metadata,
    Column("user_id", Text, primary_key=True, comment="full user id, lower case localpart"),
    Column("password_hash", Text, comment="argon2id in PHC form; NULL: no password can be used"),
    Column("created_ms", BigInteger, nullable=False),
    Column("admin", Boolean, nullable=False, comment="a server administrator"),
    Column("guest", Boolean, nullable=False, comment="made by registration of kind guest"),
    Column("deactivated", Boolean, nullable=False, comment="ended for good; the id is never given again"),
    Column("suspended", Boolean, nullable=False, comment="may read and leave, not write"),
    Column("locked", Boolean, nullable=False, comment="may do nothing but log out"),
    Column("erased_ms", BigInteger, comment="when the owner had the content erased; NULL: not"),
)

devices = Table(
    "devices",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("device_id", Text, primary_key=True),
    Column("display_name", Text, comment="NULL: none"),
    Column("created_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, comment="NULL: never since it was made; written now and then"),
    Column("last_seen_ip", Text, comment="NULL: unknown"),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the token"),
    Column("user_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, comment="NULL: never"),
    Column("family", Text, comment="the refresh token family it comes from; NULL: cannot be refreshed"),
    Column("used", Boolean, nullable=False, comment="seen in a request; kept only for tokens with a family"),
    ForeignKeyConstraint(
        ["user_id", "device_id"], ["devices.user_id", "devices.device_id"], ondelete="CASCADE"
    ),
    Index("ix_access_tokens_device", "user_id", "device_id"),
    Index("ix_access_tokens_family", "family"),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the token"),
    Column("user_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("family", Text, nullable=False, comment="all tokens that come of one login"),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, comment="NULL: never"),
    Column(
        "next_access_hash", LargeBinary(32), comment="the access token it was turned into; NULL: not yet used"
    ),
    Column(
        "next_refresh_hash",
        LargeBinary(32),
        comment="the refresh token it was turned into; NULL: not yet used",
    ),
    ForeignKeyConstraint(
        ["user_id", "device_id"], ["devices.user_id", "devices.device_id"], ondelete="CASCADE"
    ),
    Index("ix_refresh_tokens_device", "user_id", "device_id"),
    Index("ix_refresh_tokens_family", "family"),
)

uia_sessions = Table(
    "uia_sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("operation", Text, nullable=False, comment="the operation it is bound to, and its target"),
    Column("user_id", Text, nullable=False, comment="the user it is bound to; empty: nobody is logged in"),
    Column("completed", Text, nullable=False, comment="stages done, separated by spaces; nothing secret"),
    Column(
        "registration_token",
        Text,
        comment="the token of the registration stage, counted as pending; NULL: none",
    ),
    Column("expires_ms", BigInteger, nullable=False),
    Index("ix_uia_sessions_expires", "expires_ms"),
)

registration_tokens = Table(
    "registration_tokens",
    metadata,
    Column("token", Text, primary_key=True),
    Column("uses_allowed", Integer, comment="NULL: without limit"),
    Column("completed", Integer, nullable=False, comment="accounts made with it"),
    Column("expires_ms", BigInteger, comment="NULL: never"),
)

registration_nonces = Table(
    "registration_nonces",
    metadata,
    Column("nonce", Text, primary_key=True, comment="of the shared-secret registration; used once"),
    Column("created_ms", BigInteger, nullable=False),
)

profile_fields = Table(
    "profile_fields",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("name", Text, primary_key=True, comment="displayname, avatar_url or another key"),
    Column("value_json", LargeBinary, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
)

profile_updates = Table(
    "profile_updates",
    metadata,
    Column("user_id", Text, primary_key=True, comment="whose member events are to follow the profile"),
    Column(
        "version",
        BigInteger,
        nullable=False,
        comment="counts up; a later change during the work keeps the row",
    ),
    Column(
        "not_before_ms",
        BigInteger,
        nullable=False,
        comment="next try; while somebody works, the end of the lease",
    ),
    Column("attempts", Integer, nullable=False),
    Column("leave_rooms", Boolean, nullable=False, comment="the account ended: leave every room instead"),
    Index("ix_profile_updates_not_before", "not_before_ms"),
)

filters = Table(
    "filters",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("filter_id", Text, primary_key=True, comment="made of the content's hash"),
    Column("filter_json", LargeBinary, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
)

account_data = Table(
    "account_data",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room_id", Text, primary_key=True, comment="empty: global"),
    Column("type", Text, primary_key=True),
    Column("content_json", LargeBinary, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
)

forgotten_rooms = Table(
    "forgotten_rooms",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("room_id", Text, primary_key=True),
    Column("forgotten_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
)

pushers = Table(
    "pushers",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("app_id", Text, primary_key=True),
    Column("pushkey", Text, primary_key=True),
    Column("pusher_json", LargeBinary, nullable=False, comment="the pusher as the client set it"),
    Column("device_id", Text, nullable=False, comment="the device that set it"),
    Column("created_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
    Index("ix_pushers_app_pushkey", "app_id", "pushkey"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", Text, primary_key=True),
    Column("room_id", Text, nullable=False),
    Column("creator", Text, nullable=False, comment="the user who made it"),
    Column("created_ms", BigInteger, nullable=False),
    Index("ix_aliases_room", "room_id"),
    Index("ix_aliases_creator", "creator"),
)

published_rooms = Table(
    "published_rooms",
    metadata,
    Column("room_id", Text, primary_key=True),
    Column("publisher", Text, nullable=False, comment="the user who put it into the directory"),
    Column("published_ms", BigInteger, nullable=False),
)

login_tokens = Table(
    "login_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the token; used once"),
    Column("user_id", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
    Index("ix_login_tokens_expires", "expires_ms"),
)

openid_tokens = Table(
    "openid_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True, comment="SHA-256 of the token"),
    Column("user_id", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["user_id"], ["users.user_id"], ondelete="CASCADE"),
    Index("ix_openid_tokens_expires", "expires_ms"),
)

reports = Table(
    "reports",
    metadata,
    Column("report_id", Text, primary_key=True, comment="random"),
    Column("created_ms", BigInteger, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("room_id", Text, nullable=False, comment="as the reporter names it; empty: a user is reported"),
    Column("event_id", Text, nullable=False, comment="empty: the room, or a user"),
    Column("user_id", Text, nullable=False, comment="empty: a room or an event is reported"),
    Column("reason", Text, nullable=False),
    Column("score", Integer, comment="-100 (most offensive) to 0; NULL: none given"),
    Index("ix_reports_created", "created_ms"),
    Index("ix_reports_reporter", "reporter"),
)

blocked_rooms = Table(
    "blocked_rooms",
    metadata,
    Column("room_id", Text, primary_key=True, comment="nobody of ours may join or make it"),
    Column("blocker", Text, nullable=False, comment="the administrator"),
    Column("blocked_ms", BigInteger, nullable=False),
)

room_tasks = Table(
    "room_tasks",
    metadata,
    Column("task_id", Text, primary_key=True, comment="random"),
    Column("kind", Text, nullable=False, comment="purge_history, delete_room"),
    Column("room_id", Text, nullable=False),
    Column("request_json", LargeBinary, nullable=False, comment="what was asked for"),
    Column("result_json", LargeBinary, nullable=False, comment="what was done so far, an object"),
    Column("status", Text, nullable=False, comment="active, complete, failed"),
    Column("error", Text, nullable=False, comment="why it failed; empty: it did not"),
    Column(
        "not_before_ms",
        BigInteger,
        nullable=False,
        comment="next try; while somebody works, the end of the lease",
    ),
    Column("attempts", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False, comment="long after the end the row is cleared away"),
    Index("ix_room_tasks_due", "status", "not_before_ms"),
    Index("ix_room_tasks_room", "room_id"),
)

annotations = Table(
    "annotations",
    metadata,
    Column(
        "annotation_hash",
        LargeBinary(32),
        primary_key=True,
        comment="SHA-256 of room, annotated event, sender, type and key: one of a kind that stands",
    ),
    Column("event_id", Text, nullable=False, comment="the annotation that was sent last"),
    Column("device_id", Text, nullable=False, comment="the device that sent it"),
    Column("txn_id", Text, nullable=False, comment="under which transaction; empty: none"),
)
