"""Rooms as files: what happens, what is refused by which rule, what the state is in the end.

A file of `tests/unit/matrixlib/rooms/` is an object:

* `spec`: the sentence or section that decides the case;
* `versions`: a range of room versions such as "8-12";
* `room` (optional): arguments of `Room`; `members` (optional): users that join first;
* `steps`: each with `sender`, `type`, `content`, `state_key`, `prev`, `ts`, `auth`, a `name` to refer to it,
  and `refused`: ranges of versions -> number of the rule (absent: the event must be accepted);
* `state` (optional): "type|state_key" -> name of the step that is in the resolved state of all heads, or
  null.

`alice` to `erin` stand for users, in values and in the keys of objects.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import rooms
from tests.support.random_rooms import ERIN
from tests.support.rooms import Room

NAMES = {"alice": rooms.ALICE, "bob": rooms.BOB, "carol": rooms.CAROL, "dave": rooms.DAVE, "erin": ERIN}


@dataclass(frozen=True)
class Fixture:
    """One case in one room version."""

    path: Path
    version: str

    def __str__(self) -> str:
        return f"{self.path.stem}-v{self.version}"


def load_fixtures(folder: Path) -> list[Fixture]:
    """All cases of a folder, once per version."""
    return [
        Fixture(path, version)
        for path in sorted(folder.glob("*.json"))
        for version in versions_in(json.loads(path.read_text())["versions"])
    ]


def versions_in(ranges: str) -> list[str]:
    """The versions of "1-5" or "3" or "1-2,6-12"."""
    found = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += [str(number) for number in range(int(first), int(last or first) + 1)]
    return found


def play(fixture: Fixture) -> tuple[Room, list[str]]:
    """Build the room; gives it and what differs from the file, one line each."""
    case = json.loads(fixture.path.read_text())
    room = Room(fixture.version, **_named(case.get("room", {})))
    room.with_members(*(NAMES[user] for user in case.get("members", [])))
    ids = {"start": list(room.heads)[-1], "create": room.create.event_id}
    wrong = []
    for number, step in enumerate(case["steps"]):
        arguments = _named(
            {key: value for key, value in step.items() if key not in ("name", "refused", "prev", "auth")}
        )
        for links in ("prev", "auth"):
            if links in step:
                arguments[links] = [ids[name] for name in step[links]]
        kind, sender = arguments.pop("type"), arguments.pop("sender")
        event = room.send(sender, kind, **arguments)
        ids[step.get("name", f"step {number}")] = event.event_id
        expected = next(
            (
                rule
                for ranges, rule in step.get("refused", {}).items()
                if fixture.version in versions_in(ranges)
            ),
            None,
        )
        refused = room.rejected.get(event.event_id)
        if (refused.rule if refused else None) != expected:
            wrong.append(f"{step.get('name', number)}: {refused}, expected rule {expected}")
    if "state" in case:
        state = {f"{kind}|{key}": event.event_id for (kind, key), event in room.state.items()}
        for key, name in case["state"].items():
            kind, _, state_key = key.partition("|")
            full = f"{kind}|{NAMES.get(state_key, state_key)}"
            if state.get(full) != (ids[name] if name else None):
                wrong.append(f"state {key}: {state.get(full)}, expected {name}")
    return room, wrong


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return NAMES.get(value, value)
    if isinstance(value, list):
        return [_named(item) for item in value]
    if isinstance(value, dict):
        return {NAMES.get(key, key): _named(item) for key, item in value.items()}
    return value
