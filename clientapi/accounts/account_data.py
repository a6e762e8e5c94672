"""Writing account data and telling readers of it, in one unit of work."""

from collections.abc import Callable
from typing import Any, Final

import orjson
from sqlalchemy import Connection

from clientapi.accounts.tell import Teller, account_data_changed
from clientapi.storage import settings
from servicekit.database import Database
from servicekit.errors import MatrixError, invalid_param, too_much

PUSH_RULES: Final = "m.push_rules"
MAX_CONTENT_BYTES: Final = 65_536
# One message of the log holds it.
MAX_RULESET_BYTES: Final = 400_000
MAX_TYPE_BYTES: Final = 255
MAX_ENTRIES: Final = 10_000
MAX_TOTAL_BYTES: Final = 16 * 1024 * 1024


class AccountDataStore:
    """Writes account data and tells readers, in one unit of work."""

    def __init__(self, db: Database, teller: Teller) -> None:
        self.db = db
        self._teller = teller

    def store(
        self,
        conn: Connection,
        user_id: str,
        room_id: str,
        type_: str,
        content_json: bytes,
    ) -> None:
        """Set account data; an empty room id means global.

        Raises:
            MatrixError: it is too large (M_TOO_LARGE), or the user has too much of it.
        """
        max_bytes = MAX_RULESET_BYTES if type_ == PUSH_RULES else MAX_CONTENT_BYTES
        if len(content_json) > max_bytes:
            raise MatrixError("M_TOO_LARGE", 413, f"This account data holds at most {max_bytes} bytes")
        if len(type_.encode()) > MAX_TYPE_BYTES or "\0" in type_:
            raise invalid_param(f"A type has at most {MAX_TYPE_BYTES} bytes")
        old = settings.load_account_data(conn, user_id, room_id, type_)
        grows_by = len(content_json) - len(old or b"")
        if old is None or grows_by > 0:
            count, size_bytes = settings.measure_account_data(conn, user_id)
            if old is None and count >= MAX_ENTRIES:
                raise too_much(f"A user has at most {MAX_ENTRIES} entries of account data")
            if size_bytes + grows_by > MAX_TOTAL_BYTES:
                raise too_much(f"A user's account data has at most {MAX_TOTAL_BYTES} bytes together")
        settings.store_account_data(conn, user_id, room_id, type_, content_json)
        self._teller.tell_user(
            conn, "user.account_data", user_id, [account_data_changed(room_id, type_, content_json)]
        )

    def change(
        self,
        conn: Connection,
        user_id: str,
        room_id: str,
        type_: str,
        change: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Replace account data by what `change` makes of it (an empty object where there was none)."""
        old = settings.load_account_data(conn, user_id, room_id, type_)
        new = change({} if old is None else orjson.loads(old))
        self.store(conn, user_id, room_id, type_, orjson.dumps(new))
