"""Whether a user takes invites (client-server API, "Invite permission"; account data `m.invite_permission_config`)."""

from typing import Any, Final

INVITE_PERMISSION: Final = "m.invite_permission_config"


def blocks_invites(content: Any) -> bool:
    """Say whether the content of the account data asks for no invites. Any other value means invites as usual."""
    return isinstance(content, dict) and content.get("default_action") == "block"
