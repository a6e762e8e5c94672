"""The whole answer, joined from its parts."""

from dataclasses import dataclass, field

import orjson


@dataclass(slots=True)
class Answer:
    """The parts of an answer: rooms by section, everything as JSON bytes.

    `empty`: there is nothing to tell, so that a long poll goes on waiting.
    """

    join: dict[str, bytes] = field(default_factory=dict)
    invite: dict[str, bytes] = field(default_factory=dict)
    knock: dict[str, bytes] = field(default_factory=dict)
    leave: dict[str, bytes] = field(default_factory=dict)
    account_data: list[bytes] = field(default_factory=list)
    presence: list[bytes] = field(default_factory=list)
    to_device: list[bytes] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (
            self.join
            or self.invite
            or self.knock
            or self.leave
            or self.account_data
            or self.presence
            or self.to_device
            or self.changed
            or self.left
        )

    def render(self, next_batch: str) -> bytes:
        """Return the body of the answer."""
        parts = [b'{"next_batch":"%b","device_one_time_keys_count":{}' % next_batch.encode()]
        sections = [
            b'"%b":{%b}'
            % (name, b",".join([b"%b:%b" % (orjson.dumps(room), body) for room, body in rooms.items()]))
            for name, rooms in (
                (b"join", self.join),
                (b"invite", self.invite),
                (b"knock", self.knock),
                (b"leave", self.leave),
            )
            if rooms
        ]
        if sections:
            parts.append(b'"rooms":{%b}' % b",".join(sections))
        for name, events in (
            (b"account_data", self.account_data),
            (b"presence", self.presence),
            (b"to_device", self.to_device),
        ):
            if events:
                parts.append(b'"%b":{"events":[%b]}' % (name, b",".join(events)))
        if self.changed or self.left:
            lists = orjson.dumps({"changed": self.changed, "left": self.left})
            parts.append(b'"device_lists":%b' % lists)
        return b",".join(parts) + b"}"
