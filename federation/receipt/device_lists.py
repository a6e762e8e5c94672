"""Device lists of other servers' users that have a gap, asked for whole (server-server API, "Device Management").

The transaction that brought a change notes the gap (`storage.device_lists.note_changes`), so that a restart
finds it. Here the list is asked for, with growing delay, until it comes; then OUTPUT is told all of it.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from arbor.log.v1 import output_pb2
from federation.clock import NowMs
from federation.outbound.backoff import Backoff
from federation.outbound.client import FederationClient, path_of
from federation.outbound.errors import BackingOff, BadAnswer, RemoteError, RemoteRefused
from federation.rooms import Rooms
from federation.storage import device_lists as storage
from federation.storage.device_lists import Incomplete
from federation.tell import Teller, Telling
from matrixlib.canonical_json import MAX_SAFE_INTEGER, encode_canonical
from matrixlib.identifiers import server_name_of
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.log.outbox import OutboxEntry
from servicekit.logging import get_logger

log = get_logger("federation.device_lists")

MAX_AT_ONCE = 8
BATCH = 100
TIMEOUT_S = 30.0
# It goes as one message onto the log.
MAX_ANSWER_BYTES = 768 * 1024
KEEP_MS = 90 * 24 * 3600 * 1000
FORGET_EACH_S = 3600.0
MAX_WAIT_S = 60.0


class DeviceLists:
    """See the module."""

    def __init__(
        self,
        client: FederationClient,
        rooms: Rooms,
        database: Database,
        teller: Teller,
        now_ms: NowMs,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._rooms = rooms
        self._database = database
        self._teller = teller
        self._now_ms = now_ms
        self._jitter = jitter
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be a new gap."""
        self._wake.set()

    async def run(self) -> None:
        """Ask for the lists that have gaps, until cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time()
        while True:
            self._wake.clear()
            while await self.ask_due():
                pass
            if loop.time() >= forget_at:
                await self._database.write(storage.forget_before, self._now_ms() - KEEP_MS)
                forget_at = loop.time() + FORGET_EACH_S
            due_ms = await self._database.read(storage.next_due_ms)
            wait_s = MAX_WAIT_S if due_ms is None else (due_ms - self._now_ms()) / 1000
            try:
                async with asyncio.timeout(min(max(wait_s, 0.05), MAX_WAIT_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def ask_due(self) -> int:
        """Ask for every list that is due, a batch of them; returns how many there were."""
        due = await self._database.read(storage.load_incomplete, self._now_ms(), BATCH)
        slots = asyncio.Semaphore(MAX_AT_ONCE)

        async def ask(item: Incomplete) -> None:
            async with slots:
                await self._ask(item)

        async with asyncio.TaskGroup() as group:
            for item in due:
                group.create_task(ask(item))
        return len(due)

    async def _ask(self, item: Incomplete) -> None:
        try:
            if not await self._rooms.memberships("", [item.user_id], ["join"]):
                # Nobody here shares a room with the user any more.
                await self._database.write(storage.forget_user, item.user_id)
                return
            answer = await self._fetch(item.user_id)
        except RemoteRefused as error:
            if error.http_status in (403, 404) and error.errcode in ("M_NOT_FOUND", "M_FORBIDDEN"):
                log.info("device_list_refused", user=item.user_id, reason=str(error))
                await self._database.write(storage.forget_user, item.user_id)
                return
            await self._failed(item, error)
        except (RemoteError, MatrixError) as error:
            await self._failed(item, error)
        else:
            entries = await self._database.write(self._store, item, answer)
            self._teller.publish(entries)

    async def _failed(self, item: Incomplete, error: Exception) -> None:
        next_try_ms = Backoff(item.attempts).failed(self._now_ms(), self._jitter()).next_try_ms
        if isinstance(error, BackingOff):
            next_try_ms = max(next_try_ms, error.next_try_ms)
        log.info("device_list_not_got", user=item.user_id, attempts=item.attempts + 1, reason=str(error))
        await self._database.write(storage.note_failed, item, next_try_ms, str(error))

    async def _fetch(self, user_id: str) -> dict[str, Any]:
        """Return a user's whole list, checked for its form.

        Raises:
            RemoteError: it cannot be had.
        """
        server = server_name_of(user_id)
        answer = await self._client.get(
            server,
            path_of("/_matrix/federation/v1/user/devices/{}", user_id),
            timeout_s=TIMEOUT_S,
            max_bytes=MAX_ANSWER_BYTES,
        )
        if not isinstance(answer, dict) or answer.get("user_id") != user_id:
            raise BadAnswer(server, "the device list is not of the user asked for")
        stream_id, devices = answer.get("stream_id"), answer.get("devices")
        if type(stream_id) is not int or not 0 <= stream_id <= MAX_SAFE_INTEGER:
            raise BadAnswer(server, "stream_id is no integer of the right size")
        if not isinstance(devices, list):
            raise BadAnswer(server, "devices is no array")
        kept: dict[str, Any] = {
            "user_id": user_id,
            "stream_id": stream_id,
            "devices": [device for device in devices if _is_device(device, user_id)],
        }
        for key in ("master_key", "self_signing_key"):
            if isinstance(answer.get(key), dict) and answer[key].get("user_id") == user_id:
                kept[key] = answer[key]
        return kept

    def _store(self, conn: Any, item: Incomplete, answer: dict[str, Any]) -> list[OutboxEntry]:
        now = self._now_ms()
        storage.note_whole(conn, item, answer["stream_id"], now)
        changed = output_pb2.DeviceListChanged(
            stream_id=answer["stream_id"], keys_json=encode_canonical(answer), whole_list=True
        )
        message = output_pb2.OutputMessage(
            user_id=item.user_id,
            created_ms=now,
            entries=[output_pb2.OutputEntry(device_list_changed=changed)],
        )
        return self._teller.store(conn, [Telling("user.device_list", item.user_id, message)])


def _is_device(device: Any, user_id: str) -> bool:
    """Whether an entry is a device of the user, with keys that say the same."""
    if not isinstance(device, dict):
        return False
    device_id, keys = device.get("device_id"), device.get("keys")
    if not isinstance(device_id, str) or not 0 < len(device_id) <= 255:
        return False
    name = device.get("device_display_name")
    if name is not None and not isinstance(name, str):
        return False
    return keys is None or (
        isinstance(keys, dict)
        and keys.get("user_id", user_id) == user_id
        and keys.get("device_id", device_id) == device_id
    )
