"""Whether users take invites (client-server API, "Invite permission"; account data `m.invite_permission_config`)."""

from typing import Final

import orjson
from sqlalchemy import Connection, select

from clientapi.storage.tables import account_data

TYPE: Final = "m.invite_permission_config"


def load_who_blocks_invites(conn: Connection, user_ids: list[str]) -> set[str]:
    """Return those of these local users who take no invites."""
    rows = conn.execute(
        select(account_data.c.user_id, account_data.c.content_json).where(
            account_data.c.user_id.in_(user_ids), account_data.c.room_id == "", account_data.c.type == TYPE
        )
    )
    return {row.user_id for row in rows if _blocks(row.content_json)}


def _blocks(content_json: bytes) -> bool:
    content = orjson.loads(content_json)
    # Any other value means invites as usual.
    return isinstance(content, dict) and content.get("default_action") == "block"
