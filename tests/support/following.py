"""A client that follows `/sync` as apps do, and keeps what it was told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.matrix_client import MatrixClient

# So that nothing is limited in what a test sends.
LONG_TIMELINES = '{"room":{"timeline":{"limit":1000},"include_leave":true}}'


@dataclass
class Follower:
    """What one device has seen since it began: `timeline` holds (room id, event id) in order."""

    client: MatrixClient
    since: str | None = None
    timeline: list[tuple[str, str]] = field(default_factory=list)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    limited: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    invited: set[str] = field(default_factory=set)
    answers: int = 0

    async def follow(self, timeout_ms: int = 0) -> dict[str, Any]:
        """One `/sync` from where the last one ended."""
        answer = await self.client.sync(self.since, timeout_ms, filter=LONG_TIMELINES)
        incremental, self.since = self.since is not None, answer["next_batch"]
        self.answers += 1
        rooms = answer.get("rooms", {})
        for kind in ("join", "leave"):
            for room_id, room in rooms.get(kind, {}).items():
                timeline = room.get("timeline", {})
                if timeline.get("limited") and incremental:
                    self.limited.append(room_id)
                for event in timeline.get("events", []):
                    self.timeline.append((room_id, event["event_id"]))
                    self.events[event["event_id"]] = event
        self.left |= set(rooms.get("leave", {}))
        self.invited |= set(rooms.get("invite", {}))
        return answer

    async def follow_until(self, done: Callable[["Follower"], bool], timeout_s: float = 30) -> None:
        """Follow until `done(self)`."""
        async with asyncio.timeout(timeout_s):
            while not done(self):
                await self.follow(2000)

    async def catch_up(self, *event_ids: str, timeout_s: float = 30) -> None:
        """Follow until these events were told."""
        await self.follow_until(lambda own: all(one in own.events for one in event_ids), timeout_s)

    def repeated(self) -> list[tuple[str, str]]:
        """What was told more than once."""
        return [entry for entry in set(self.timeline) if self.timeline.count(entry) > 1]
