"""Steps 1 to 3 of the checks on receipt of a PDU: format, signatures, hashes (server-server API, "Checks
performed on receipt of a PDU", "Validating hashes and signatures on received events").

Every way by which an event of another server comes in goes through `PduChecker.check`: a transaction, an
answer to a question, a join's state. What does not pass is dropped alone; a wrong content hash means that we
were given a redacted copy, and the redacted form is used.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from federation.keys.ring import KeyRing
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
        keys = await self._keys_for(item for item in parsed if isinstance(item, Event))
        results: list[Event | Dropped] = []
        for start in range(0, len(parsed), _CHUNK):
            chunk = parsed[start : start + _CHUNK]
            if len(chunk) <= 4:
                results.extend(_verify(item, keys) for item in chunk)
            else:
                results.extend(await asyncio.to_thread(_verify_all, chunk, keys))
        return results

    async def check_one(
        self, pdu: Any, room_version: RoomVersion, *, room_id: str | None = None
    ) -> Event | Dropped:
        """Check one PDU."""
        return (await self.check([pdu], room_version, room_id=room_id))[0]

    async def _keys_for(self, events: Iterable[Event]) -> "_Keys":
        """Get every key that the events' required signatures name; unknown ones are left out."""
        # (server, enforce validity) -> key ids, and the latest time at which one of its events was made:
        # fetched once for the latest, then judged for each event by its own time.
        wanted: dict[tuple[str, bool], tuple[set[str], int]] = {}
        times: dict[tuple[str, bool], set[int]] = {}
        for event in events:
            enforce = event.room_version.enforce_key_validity
            for name in event_signers(event):
                server = str(name)
                ids, latest = wanted.get((server, enforce), (set(), 0))
                ids.update(signing_key_ids(event.pdu, server)[:10])
                wanted[server, enforce] = (ids, max(latest, event.origin_server_ts))
                times.setdefault((server, enforce), set()).add(event.origin_server_ts)
        found: _Keys = {}

        async def get(server: str, enforce: bool, ids: set[str], latest: int) -> None:
            await self._ring.verify_keys(server, ids, latest, enforce_validity=enforce)
            for at_ms in times[server, enforce]:
                found[server, at_ms] = await self._ring.verify_keys(
                    server, ids, at_ms, enforce_validity=enforce
                )

        async with asyncio.TaskGroup() as group:
            for (server, enforce), (ids, latest) in wanted.items():
                group.create_task(get(server, enforce, ids, latest))
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
        checked = [key_id for key_id in signing_key_ids(item.pdu, server) if key_id in known]
        if not checked:
            return Dropped(item.event_id, f"no signature of {server} with a known key")
        try:
            for key_id in checked:
                verify_event_signature(item, server, known[key_id])
        except SignatureError as error:
            return Dropped(item.event_id, f"signature of {server}: {error}")
    if not check_content_hash(item.pdu):
        return redact_event(item)
    return item
