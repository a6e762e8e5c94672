"""Of several local server names the one to speak as: that of the user whom an event or EDU is about.

Others believe an EDU only if the server that sends it is its user's.
"""

from collections.abc import Sequence
from typing import Any

from federation.storage.outgoing import OutgoingEvent
from matrixlib.canonical_json import parse_json
from matrixlib.identifiers import server_name_of


class LocalNames:
    """Our server names, the first being the one for what belongs to none of our users."""

    def __init__(self, names: Sequence[str]) -> None:
        self.local = tuple(names)

    def of_event(self, event: OutgoingEvent) -> str:
        """The name to send an event as."""
        return self.of_user(parse_json(event.pdu_json).get("sender"))

    def of_edu(self, edu: dict[str, Any]) -> str:
        """The name to send an EDU as."""
        content = edu["content"]
        match edu["edu_type"]:
            case "m.direct_to_device":
                return self.of_user(content.get("sender"))
            case "m.presence":
                return self.of_user(content["push"][0]["user_id"])
            case "m.receipt":
                users = [user for room in content.values() for user in room["m.read"]]
                return self.of_user(users[0])
            case _:
                return self.of_user(content.get("user_id"))

    def of_user(self, user_id: Any) -> str:
        """The name of a user."""
        name = str(server_name_of(user_id)) if isinstance(user_id, str) else ""
        return name if name in self.local else self.local[0]
