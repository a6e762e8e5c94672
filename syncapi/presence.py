"""Being present by reading: `set_presence` of `/sync`, told on LIVE when it changes.

    /sync begins, ends ──► devices of the user ──► online if one is, else unavailable, else (a minute later) offline
                                                      └─ only what differs from what was told last is told

NOTSPEC: who goes on reading is not told of again and again: `last_active_ago` is the time of the last change.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from arbor.log.v1 import live_pb2
from servicekit.log.errors import LogError
from servicekit.logging import get_logger
from syncapi.live import Live

log = get_logger(__name__)

OFFLINE_AFTER_MS = 60_000
SWEEP_S = 10.0

Publish = Callable[[str, bytes], Awaitable[None]]


@dataclass(slots=True)
class _Device:
    presence: str
    reading: int = 0
    """Requests that wait now."""
    seen_ms: int = 0


@dataclass(slots=True)
class _User:
    devices: dict[str, _Device] = field(default_factory=dict)
    told: tuple[str, str] = ("", "offline")
    """LIVE's epoch and what was told in it."""


class PresenceTeller:
    """See the module. Only used on the event loop.

    Args:
        live: what is told by anybody.
        publish: (user, message) to LIVE.
        enabled: `presence.enabled`.
    """

    def __init__(self, live: Live, publish: Publish, *, enabled: bool) -> None:
        self._live = live
        self._publish = publish
        self._enabled = enabled
        self._users: dict[str, _User] = {}
        self._changed: asyncio.Queue[str] = asyncio.Queue()

    @contextlib.contextmanager
    def reading(self, user_id: str, device_id: str, presence: str) -> Iterator[None]:
        """Count as present while a request is answered, and for a minute after. `offline`: does not count."""
        if not self._enabled or presence == "offline":
            yield
            return
        user = self._users.get(user_id)
        if user is None:
            user = self._users[user_id] = _User()
        device = user.devices.get(device_id)
        if device is None:
            device = user.devices[device_id] = _Device(presence)
        device.presence = presence
        device.reading += 1
        self._look(user_id, user)
        try:
            yield
        finally:
            device.reading -= 1
            device.seen_ms = self._live.clock_ms()

    def _look(self, user_id: str, user: _User) -> None:
        if user.told != (self._live.epoch, self._now(user)):
            self._changed.put_nowait(user_id)

    def _now(self, user: _User) -> str:
        found = {device.presence for device in user.devices.values()}
        return "online" if "online" in found else "unavailable" if found else "offline"

    def sweep(self) -> None:
        """Let go of devices that no longer read."""
        before = self._live.clock_ms() - OFFLINE_AFTER_MS
        for user_id, user in list(self._users.items()):
            gone = [id_ for id_, one in user.devices.items() if not one.reading and one.seen_ms < before]
            for device_id in gone:
                del user.devices[device_id]
            if gone:
                self._look(user_id, user)

    async def run(self) -> None:
        """Tell what changes, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    user_id = await self._changed.get()
            except TimeoutError:
                self.sweep()
            else:
                await self._tell(user_id)

    async def _tell(self, user_id: str) -> None:
        user = self._users.get(user_id)
        if user is None:
            return
        now = (self._live.epoch, self._now(user))
        if now == user.told:
            return
        known = self._live.presence.get(user_id)
        message = live_pb2.LiveMessage(
            presence=live_pb2.Presence(
                user_id=user_id,
                presence=now[1],
                status_msg=known.status_msg if known is not None else None,
                last_active_ms=self._live.clock_ms(),
                currently_active=now[1] == "online",
            )
        )
        try:
            await self._publish(user_id, message.SerializeToString())
        except LogError as error:
            # It is true for a moment only: the next request tells again.
            log.warning("presence_not_told", error=str(error))
            return
        user.told = now
        if not user.devices:
            del self._users[user_id]
