"""Changes of an account that its owner and administrators make alike. All run in the caller's unit of work."""

from typing import Final

from sqlalchemy import Connection

from clientapi.accounts.sessions import Sessions
from clientapi.accounts.tell import Teller, account_changed, account_data_changed
from clientapi.clock import Clock
from clientapi.storage import administration, settings, users
from clientapi.storage.administration import Flag
from servicekit.errors import MatrixError

MAX_PROFILE_BYTES: Final = 65_536
MAX_ENTRIES: Final = 500
IN_MEMBER_EVENTS: Final = ("displayname", "avatar_url")


class AccountChanges:
    """See the module. After the commit: `Sessions.forget_user`, and `ProfileUpdates.wake` where rooms follow."""

    def __init__(self, sessions: Sessions, teller: Teller, clock: Clock) -> None:
        self._sessions = sessions
        self._teller = teller
        self._clock = clock

    def deactivate(self, conn: Connection, user_id: str, *, erase: bool = False) -> None:
        """End the account for good: sessions, password, profile; it leaves its rooms.

        Args:
            erase: its content, too.
        """
        self._sessions.end_devices(conn, user_id, None)
        users.store_deactivated(conn, user_id)
        settings.delete_device_pushers(conn, user_id, None)
        users.store_profile_update(conn, user_id, self._clock(), leave_rooms=True)
        self._teller.tell_user(conn, "user.device", user_id, [account_changed(access=True, profile=True)])
        if erase:
            self.erase(conn, user_id)

    def erase(self, conn: Connection, user_id: str) -> None:
        """Erase the content of an ended account: what it wrote is for those who were there, its settings go."""
        now_ms = self._clock()
        if not users.store_erased(conn, user_id, now_ms):
            return
        self._teller.tell_user(conn, "user.device", user_id, [account_changed(erased_ms=now_ms)])
        gone = settings.delete_settings(conn, user_id)
        for start in range(0, len(gone), MAX_ENTRIES):
            entries = [
                account_data_changed(room, type_, b"") for room, type_ in gone[start : start + MAX_ENTRIES]
            ]
            self._teller.tell_user(conn, "user.account_data", user_id, entries)

    def set_flag(self, conn: Connection, user_id: str, flag: Flag, value: bool) -> None:
        """Make somebody an administrator, suspend or lock an account, or take that back."""
        administration.store_flag(conn, user_id, flag, value)
        self._teller.tell_user(conn, "user.device", user_id, [account_changed(access=True)])

    def set_password(
        self,
        conn: Connection,
        user_id: str,
        password_hash: str,
        logout_devices: bool,
        keep: str | None = None,
    ) -> None:
        """Set a password and, where asked for, end all sessions but that of the device `keep`."""
        users.store_password(conn, user_id, password_hash)
        if logout_devices:
            self._sessions.end_devices(conn, user_id, None, keep)

    def set_profile_field(self, conn: Connection, user_id: str, name: str, value_json: bytes | None) -> None:
        """Set a field of the profile; None removes it.

        Raises:
            MatrixError: M_PROFILE_TOO_LARGE.
        """
        if value_json is None:
            users.delete_profile_field(conn, user_id, name)
        else:
            fields = users.load_profiles(conn, [user_id]).get(user_id, {})
            others = sum(len(key) + len(value) + 4 for key, value in fields.items() if key != name)
            if others + len(name) + len(value_json) + 4 > MAX_PROFILE_BYTES:
                raise MatrixError(
                    "M_PROFILE_TOO_LARGE", 400, f"A profile has at most {MAX_PROFILE_BYTES} bytes"
                )
            if fields.get(name) == value_json:
                return
            users.store_profile_field(conn, user_id, name, value_json)
        if name in IN_MEMBER_EVENTS:
            users.store_profile_update(conn, user_id, self._clock())
        self._teller.tell_user(conn, "user.device", user_id, [account_changed(profile=True)])
