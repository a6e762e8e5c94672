"""The verdict of an authorisation check as a value: allowed, or refused by a numbered rule."""

from dataclasses import dataclass
from typing import Final

from matrixlib.room_versions import RoomVersion


@dataclass(frozen=True, slots=True)
class Allowed:
    """The event is allowed."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The event is refused: by which rule of which room version's page, and why in words."""

    room_version: str
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"room version {self.room_version}, rule {self.rule}: {self.reason}"


Verdict = Allowed | Refused
ALLOWED: Final = Allowed()


def refuse(version: RoomVersion, rule_name: str, reason: str) -> Refused:
    """A refusal by the rule that we name ``rule_name``, with the number that it has in this room version."""
    return Refused(version.identifier, version.rule(rule_name), reason)
