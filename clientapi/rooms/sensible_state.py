"""State that the auth rules let through, or refuse without a reason that helps, and that nobody can want.

Checked where a client sets it; what other servers send is judged by the auth rules alone.
"""

from collections.abc import Mapping
from typing import Any, Final

from matrixlib.server_acl import ServerAcl
from servicekit.errors import bad_json, invalid_param

_LEVELS: Final = (
    "ban",
    "events_default",
    "invite",
    "kick",
    "redact",
    "state_default",
    "users_default",
)
_MAPS: Final = ("events", "notifications", "users")


def check_sensible(
    room_id: str, server_name: str, type_: str, state_key: str, content: Mapping[str, Any]
) -> None:
    """Check the content of a state event of a local user.

    Args:
        server_name: the user's own.

    Raises:
        MatrixError: M_BAD_JSON for levels that are no numbers, M_INVALID_PARAM for an ACL that shuts this server
            out and for a tombstone that names its own room.
    """
    if state_key:
        return
    match type_:
        case "m.room.power_levels":
            _check_levels(content)
        case "m.room.server_acl":
            if not ServerAcl(content).allows(server_name):
                raise invalid_param("This would shut your own server out of the room")
        case "m.room.tombstone":
            if content.get("replacement_room") == room_id:
                raise invalid_param("A room cannot replace itself")
        case _:
            pass


def _check_levels(content: Mapping[str, Any]) -> None:
    # NOTSPEC: room versions before 10 let strings through; nothing that we write needs them.
    for name in _LEVELS:
        if name in content and not _is_level(content[name]):
            raise bad_json(f"{name} is not a whole number")
    for name in _MAPS:
        levels = content.get(name, {})
        if not isinstance(levels, dict):
            raise bad_json(f"{name} is not an object")
        for key, level in levels.items():
            if not _is_level(level):
                raise bad_json(f"{name}.{key} is not a whole number")


def _is_level(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
