"""Steps 1 to 3 of the checks on receipt of a PDU: format, signatures, hashes (server-server API, "Checks
performed on receipt of a PDU", "Validating hashes and signatures on received events").

Every way by which an event of another server comes in goes through `PduChecker.check`: a transaction, an
answer to a question, a join's state. What does not pass is dropped alone; a wrong content hash means that we
were given a redacted copy, and the redacted form is used.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from federation.keys.ring import KeyRing
from matrixlib import policy_servers
from matrixlib.events import Event, EventFormatError, parse_event, redact_event
from matrixlib.hashes import check_content_hash
from matrixlib.room_versions import RoomVersion
from matrixlib.signing import (
    SignatureError,
    VerifyKey,
    event_signers,
    signing_key_ids,
    verify_event_signature,
)

# Signatures checked in one go on a thread, between which the loop runs.
_CHUNK = 64
# Events looked at between two turns of the loop, where there are many.
_TURN = 500
# Whose keys are asked for at a time, of the servers that some events are of: fewer than the key ring asks at once, so
# that it has places left when all of these say nothing.
MAX_SERVERS_AT_ONCE = 20
_THREADS = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A PDU that does not pass. `event_id` is empty where it has none that can be known."""

    event_id: str
    reason: str


class PduChecker:
    """Checks PDUs against their servers' keys."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def check(
        self, pdus: Sequence[Any], room_version: RoomVersion, *, room_id: str | None = None
    ) -> list[Event | Dropped]:
        """Check PDUs as they came and return, in the same order, the event or why it is dropped.

        Args:
            pdus: parsed JSON, of any shape.
            room_id: the room that they must belong to; None: any.
        """
        parsed: list[Event | Dropped] = []
        for pdu in pdus:
            parsed.append(_parse(pdu, room_version, room_id))
            if len(parsed) % _CHUNK == 0:
                await asyncio.sleep(0)
        keys = await self._keys_for([item for item in parsed if isinstance(item, Event)])
        if len(parsed) <= 4:
            return _verify_all(parsed, keys)
        results: list[Event | Dropped] = []
        # Some chunks at a time: the threads hold no lock of the interpreter's while a signature is checked.
        chunks = [parsed[start : start + _CHUNK] for start in range(0, len(parsed), _CHUNK)]
        for start in range(0, len(chunks), _THREADS):
            checked = await asyncio.gather(
                *(asyncio.to_thread(_verify_all, chunk, keys) for chunk in chunks[start : start + _THREADS])
            )
            results.extend(item for part in checked for item in part)
        return results

    async def check_one(
        self, pdu: Any, room_version: RoomVersion, *, room_id: str | None = None
    ) -> Event | Dropped:
        """Check one PDU."""
        return (await self.check([pdu], room_version, room_id=room_id))[0]

    async def _keys_for(self, events: Sequence[Event]) -> "_Keys":
        """Get every key that the events' required signatures name; unknown ones are left out."""
        # (server, enforce validity) -> key ids, and the times at which its events were made.
        wanted: dict[tuple[str, bool], tuple[set[str], set[int]]] = {}
        for number, event in enumerate(events, 1):
            if number % _TURN == 0:
                await asyncio.sleep(0)
            enforce = event.room_version.enforce_key_validity
            for name in event_signers(event):
                server = str(name)
                ids, times = wanted.setdefault((server, enforce), (set(), set()))
                ids.update(_key_ids(event, server)[:10])
                times.add(event.origin_server_ts)
        found: _Keys = {}
        slots = asyncio.Semaphore(MAX_SERVERS_AT_ONCE)

        async def get(server: str, enforce: bool, ids: set[str], times: set[int]) -> None:
            async with slots:
                at_times = await self._ring.verify_keys_at(server, ids, times, enforce_validity=enforce)
            for at_ms, keys in at_times.items():
                found[server, at_ms] = keys

        async with asyncio.TaskGroup() as group:
            for (server, enforce), (ids, times) in wanted.items():
                group.create_task(get(server, enforce, ids, times))
        return found


_Keys = dict[tuple[str, int], dict[str, VerifyKey]]


def _parse(pdu: Any, room_version: RoomVersion, room_id: str | None) -> Event | Dropped:
    try:
        event = parse_event(pdu, room_version)
    except EventFormatError as error:
        claimed = pdu.get("event_id") if isinstance(pdu, dict) else None
        return Dropped(
            claimed if isinstance(claimed, str) and not room_version.hashed_event_ids else "", str(error)
        )
    if room_id is not None and event.room_id != room_id:
        return Dropped(event.event_id, "the event is of another room")
    return event


def _key_ids(event: Event, server: str) -> list[str]:
    """The keys with which a server claims to have signed as a server.

    "In particular, the policy server key is not expected to be published and therefore should be skipped at this
    stage": it is not asked for. Only where there is no other, the server may have given that name to its own key.
    """
    ids = signing_key_ids(event.pdu, server)
    return [key_id for key_id in ids if key_id != policy_servers.KEY_ID] or ids


def _verify_all(items: Sequence[Event | Dropped], keys: _Keys) -> list[Event | Dropped]:
    return [_verify(item, keys) for item in items]


def _verify(item: Event | Dropped, keys: _Keys) -> Event | Dropped:
    if isinstance(item, Dropped):
        return item
    for name in event_signers(item):
        server = str(name)
        # "Any unknown keys are ignored", but one known signature of each required server there must be, and
        # every known one must be right.
        known = keys.get((server, item.origin_server_ts), {})
        checked = [key_id for key_id in _key_ids(item, server) if key_id in known]
        if not checked:
            return Dropped(item.event_id, f"no signature of {server} with a known key")
        try:
            for key_id in checked:
                verify_event_signature(item, server, known[key_id])
        except SignatureError as error:
            return Dropped(item.event_id, f"signature of {server}: {error}")
    if not check_content_hash(item.pdu, checked=item.room_version.strict_canonical_json):
        return redact_event(item)
    return item
