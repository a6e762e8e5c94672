"""The parameters of `/sync`, checked."""

from dataclasses import dataclass

from servicekit.errors import invalid_param
from syncapi.filters import Filter
from syncapi.tokens import SyncToken

MAX_TIMEOUT_MS = 10 * 60 * 1000


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """One request. `since` None: initial."""

    user_id: str
    device_id: str
    filter: Filter
    since: SyncToken | None = None
    timeout_ms: int = 0
    full_state: bool = False
    use_state_after: bool = False
    unstable_state_after: bool = False

    @property
    def state_key(self) -> bytes:
        """Return the name of the section with state in the answer."""
        if self.unstable_state_after:
            return b"org.matrix.msc4222.state_after"
        return b"state_after" if self.use_state_after else b"state"


def check_set_presence(value: str | None) -> str:
    """Check `set_presence` and return it, `online` if it was not given.

    Raises:
        MatrixError: M_INVALID_PARAM.
    """
    if value not in (None, "online", "offline", "unavailable"):
        raise invalid_param("set_presence must be online, offline or unavailable")
    return value or "online"
