"""One transaction of another server (server-server API, "Transactions"), step by step:

1. the answer it got before, if it did: after a restart too;
2. each PDU alone: room known, ACL, format, signatures, hashes;
3. each EDU alone;
4. what passed is stored, with the transaction's id: from here on nothing is lost, whatever crashes;
5. where a room's policy server has not signed a PDU, it is asked to;
6. the PDUs go to INPUT, in their order, and the RoomServer judges them;
7. the answer lists a result for each PDU, and is kept for a repeated transaction.

Transactions of one server are taken one at a time, those of different servers side by side.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection

from arbor.log.v1 import input_pb2
from federation.clock import NowMs
from federation.policy import PolicySignatures
from federation.receipt.edus import EduReader, Heard
from federation.receipt.pdu_checks import Dropped, PduChecker
from federation.rooms import Rooms
from federation.storage import device_lists
from federation.storage import inbound as storage
from federation.storage.inbound import StagedPdu
from federation.submit import Submitter, Verdict, federation_entry
from federation.tell import Teller
from federation.turns import Turns
from matrixlib.events import Event
from matrixlib.hashes import hashed_event_id
from matrixlib.policy_servers import is_exempt
from matrixlib.room_versions import RoomVersion
from servicekit import metrics
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, limit_exceeded
from servicekit.log.connection import LogConnection
from servicekit.log.outbox import OutboxEntry
from servicekit.log.subjects import subject_of

MAX_PDUS = 50
MAX_EDUS = 100
MAX_TXN_ID = 512
# How long the RoomServer may take before the answer goes out without its verdicts.
JUDGE_TIMEOUT_S = 20.0
MAX_STAGED = 20_000

_pdus = metrics.counter("federation_pdus_received_total", "PDUs received in transactions", ["result"])
_edus = metrics.counter("federation_edus_received_total", "EDUs received in transactions")


@dataclass(slots=True)
class _Sorted:
    """A transaction's PDUs after the checks: events by room in their order, and results of the others."""

    by_room: dict[str, list[Event]] = field(default_factory=dict)
    results: dict[str, dict[str, str]] = field(default_factory=dict)


class TransactionReceiver:
    """See the module.

    Args:
        on_device_updates: called when changes of device lists were stored, of which some may leave gaps.
    """

    def __init__(
        self,
        database: Database,
        connection: LogConnection,
        rooms: Rooms,
        checker: PduChecker,
        edus: EduReader,
        policy: PolicySignatures,
        submitter: Submitter,
        teller: Teller,
        on_device_updates: Callable[[], None],
        now_ms: NowMs,
    ) -> None:
        self._database = database
        self._connection = connection
        self._rooms = rooms
        self._checker = checker
        self._edus = edus
        self._policy = policy
        self._submitter = submitter
        self._teller = teller
        self._on_device_updates = on_device_updates
        self._now_ms = now_ms
        self._turns = Turns()

    async def receive(self, origin: str, txn_id: str, content: dict[str, Any]) -> bytes:
        """Take a transaction and return the answer's JSON.

        Raises:
            MatrixError: the transaction as a whole cannot be taken; it is to be sent again.
        """
        pdus, edus = content.get("pdus", []), content.get("edus", [])
        if not isinstance(pdus, list) or not isinstance(edus, list):
            raise bad_json("pdus and edus must be arrays")
        if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
            raise bad_json(f"A transaction has at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs")
        if len(txn_id) > MAX_TXN_ID:
            raise bad_json("The transaction id is too long")
        async with self._turns.of(origin):
            known = await self._database.read(storage.load_response, origin, txn_id)
            return known if known is not None else await self._take(origin, txn_id, pdus, edus)

    async def _take(self, origin: str, txn_id: str, pdus: list[Any], edus: list[Any]) -> bytes:
        if pdus and await self._database.read(storage.count_staged) > MAX_STAGED:
            raise limit_exceeded(5000)
        checked = await self._sort(origin, pdus)
        heard = await self._edus.read(origin, edus)
        entries = await self._database.write(self._stage, origin, txn_id, checked, heard)
        self._teller.publish(entries)
        if heard.device_updates:
            self._on_device_updates()
        self._publish_live(heard)
        _edus.inc(len(edus))
        judged = await self._judge_all(origin, checked)
        for result in checked.results.values():
            _pdus.labels("error" if result else "ok").inc()
        response = orjson.dumps({"pdus": checked.results})
        await self._database.write(self._finish, origin, txn_id, response, judged)
        return response

    # -- step 2 --------------------------------------------------------------------------------------------

    async def _sort(self, origin: str, pdus: Sequence[Any]) -> _Sorted:
        found = _Sorted()
        by_room: dict[str, list[Any]] = {}
        for pdu in pdus:
            room_id = pdu.get("room_id") if isinstance(pdu, dict) else None
            # Without a room id nothing can be said about it, its event id included: it is dropped.
            if isinstance(room_id, str):
                by_room.setdefault(room_id, []).append(pdu)
        for room_id, of_room in by_room.items():
            view = await self._rooms.view(room_id)
            if view is None:
                _refuse(found, of_room, None, "Unknown room")
            elif not view.participating:
                _refuse(found, of_room, view.version, "Not in that room")
            elif not view.allows(origin):
                _refuse(found, of_room, view.version, "Server is banned from the room")
            else:
                results = await self._checker.check(of_room, view.version, room_id=room_id)
                for pdu, result in zip(of_room, results, strict=True):
                    if isinstance(result, Dropped):
                        event_id = result.event_id or _event_id_of(pdu, view.version)
                        if event_id:
                            found.results[event_id] = {"error": result.reason[:300]}
                    else:
                        found.by_room.setdefault(room_id, []).append(result)
        return found

    # -- step 4 --------------------------------------------------------------------------------------------

    def _stage(
        self, conn: Connection, origin: str, txn_id: str, checked: _Sorted, heard: Heard
    ) -> list[OutboxEntry]:
        now = self._now_ms()
        storage.begin_transaction(conn, origin, txn_id, now)
        storage.stage_pdus(
            conn,
            [
                StagedPdu(event.event_id, room_id, event.room_version.identifier, origin, event.pdu_json)
                for room_id, events in checked.by_room.items()
                for event in events
            ],
            now,
        )
        tellings = list(heard.tellings)
        if heard.to_device:
            ids = [message.message_id for message in heard.to_device]
            fresh = storage.note_messages(conn, origin, ids, now)
            for message, is_new in zip(heard.to_device, fresh, strict=True):
                tellings.extend(message.tellings if is_new else ())
        changes = [update.change for update in heard.device_updates if update.change is not None]
        news = iter(device_lists.note_changes(conn, changes, now) if changes else ())
        for update in heard.device_updates:
            tellings.extend([update.telling] if update.change is None or next(news) else ())
        return self._teller.store(conn, tellings) if tellings else []

    def _publish_live(self, heard: Heard) -> None:
        for kind, id_, message in heard.live:
            subject = subject_of(kind, id_, self._connection.partitions)
            # Lost without harm: it is true for a moment only.
            self._connection.publish_callback(subject, message.SerializeToString(), lambda _seq, _error: None)

    # -- steps 5 to 7 --------------------------------------------------------------------------------------

    async def _judge_all(self, origin: str, checked: _Sorted) -> list[str]:
        """Have the RoomServer judge; returns the ids of those it did, and adds everybody's result."""
        judged: list[str] = []

        async def judge(room_id: str, events: Sequence[Event]) -> None:
            for event, verdict in zip(events, await self.judge(room_id, origin, events), strict=True):
                checked.results[event.event_id] = result_of(verdict)
                if verdict is not None and verdict.code != input_pb2.VERDICT_CODE_BUSY:
                    judged.append(event.event_id)

        async with asyncio.TaskGroup() as group:
            for room_id, events in checked.by_room.items():
                group.create_task(judge(room_id, events))
        return judged

    async def judge(self, room_id: str, origin: str, events: Sequence[Event]) -> list[Verdict | None]:
        """Write staged events to INPUT and return the verdicts; None: none came, the events stay staged."""
        verdicts: list[Verdict | None] = []
        for part in _by_policy(events):
            if None in verdicts:
                break  # the order is kept
            try:
                view = await self._rooms.view(room_id)
                signed = part if view is None else await self._policy.of_received(view, part)
                entries = [federation_entry(event, origin) for event in signed]
                verdicts += await self._submitter.submit_all(room_id, entries, JUDGE_TIMEOUT_S)
            except MatrixError:
                break
            if is_exempt(part[-1]):
                self._rooms.forget(room_id)
        return verdicts + [None] * (len(events) - len(verdicts))

    def _finish(
        self, conn: Connection, origin: str, txn_id: str, response: bytes, judged: Sequence[str]
    ) -> None:
        storage.finish_transaction(conn, origin, txn_id, response)
        storage.unstage_pdus(conn, judged)


def _by_policy(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Events up to each that changes the room's policy, which those after it are measured by."""
    part: list[Event] = []
    for event in events:
        part.append(event)
        if is_exempt(event):
            yield part
            part = []
    if part:
        yield part


def result_of(verdict: Verdict | None) -> dict[str, str]:
    """A PDU's entry in the answer: only what was refused is an error. What waits was taken."""
    if verdict is not None and verdict.code == input_pb2.VERDICT_CODE_REJECTED:
        return {"error": verdict.rejection.reason[:300] or "Rejected"}
    return {}


def _refuse(found: _Sorted, pdus: Sequence[Any], version: RoomVersion | None, reason: str) -> None:
    for pdu in pdus:
        event_id = _event_id_of(pdu, version)
        if event_id:
            found.results[event_id] = {"error": reason}


def _event_id_of(pdu: Any, version: RoomVersion | None) -> str:
    """The id to answer under; empty where none can be known."""
    claimed = pdu.get("event_id")
    if version is None or not version.hashed_event_ids:
        return claimed if isinstance(claimed, str) and len(claimed) <= 255 else ""
    try:
        return hashed_event_id(pdu, version)
    except ValueError:
        return ""
