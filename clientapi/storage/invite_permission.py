"""Which users take no invites (`matrixlib.invite_permission`)."""

import orjson
from sqlalchemy import Connection, select

from clientapi.storage.tables import account_data
from matrixlib.invite_permission import INVITE_PERMISSION, blocks_invites


def load_who_blocks_invites(conn: Connection, user_ids: list[str]) -> set[str]:
    """Return those of these local users who take no invites."""
    rows = conn.execute(
        select(account_data.c.user_id, account_data.c.content_json).where(
            account_data.c.user_id.in_(user_ids),
            account_data.c.room_id == "",
            account_data.c.type == INVITE_PERMISSION,
        )
    )
    return {row.user_id for row in rows if blocks_invites(orjson.loads(row.content_json))}
