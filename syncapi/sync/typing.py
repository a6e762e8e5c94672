"""Who types in a room, as an ephemeral event (client-server API, "Typing Notifications")."""

import orjson

from syncapi.sync.context import Reader


def render_typing(users: list[str], reader: Reader) -> bytes | None:
    """Return the `m.typing` event; None: the filter does not want it."""
    if not reader.filter.ephemeral.passes("m.typing", ""):
        return None
    shown = [user for user in users if user not in reader.ignored]
    return orjson.dumps({"type": "m.typing", "content": {"user_ids": shown}})
