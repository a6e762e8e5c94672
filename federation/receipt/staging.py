"""PDUs that a crash or a silent log left unjudged: judged now. And old notes, dropped."""

import asyncio
from itertools import groupby

from sqlalchemy import Connection

from federation.clock import NowMs
from federation.receipt.transactions import JUDGE_TIMEOUT_S, TransactionReceiver
from federation.storage import fetching, inbound, jobs
from matrixlib.events import Event, EventFormatError, parse_event
from matrixlib.room_versions import get_room_version
from servicekit import metrics
from servicekit.database import Database
from servicekit.log.errors import LogError
from servicekit.logging import get_logger

log = get_logger("federation.staging")

CHECK_S = 15.0
# Older than what is being judged now.
AGE_MS = int(2 * JUDGE_TIMEOUT_S * 1000)
BATCH = 200
KEEP_TRANSACTIONS_MS = 3 * 24 * 3600 * 1000
KEEP_OTHERS_MS = 30 * 24 * 3600 * 1000

_staged = metrics.gauge("federation_staged_pdus", "PDUs received and not judged yet")


class Staging:
    """Judges what was left over."""

    def __init__(self, database: Database, receiver: TransactionReceiver, now_ms: NowMs) -> None:
        self._database = database
        self._receiver = receiver
        self._now_ms = now_ms

    async def run(self) -> None:
        """At the start everything that is there, later what is old, until cancelled."""
        await self.judge_left(self._now_ms())
        while True:
            await asyncio.sleep(CHECK_S)
            await self.judge_left(self._now_ms() - AGE_MS)
            await self._database.write(self._forget)

    async def judge_left(self, received_before_ms: int) -> int:
        """Judge the PDUs received before a time that nobody judged; returns how many."""
        _staged.set(await self._database.read(inbound.count_staged))
        left = await self._database.read(inbound.load_staged, received_before_ms, BATCH)
        judged: list[str] = []
        for (room_id, origin), group in groupby(left, key=lambda pdu: (pdu.room_id, pdu.origin)):
            events: list[Event] = []
            for pdu in group:
                version = get_room_version(pdu.room_version)
                try:
                    if version is not None:
                        events.append(parse_event(pdu.pdu_json, version, event_id=pdu.event_id))
                        continue
                except EventFormatError as error:
                    log.warning("staged_pdu_unusable", event=pdu.event_id, reason=str(error))
                judged.append(pdu.event_id)
            try:
                verdicts = await self._receiver.judge(room_id, origin, events)
            except LogError as error:
                log.info("staged_pdus_wait", reason=str(error))
                break
            judged.extend(
                event.event_id for event, verdict in zip(events, verdicts, strict=True) if verdict is not None
            )
        if judged:
            log.info("staged_pdus_judged", events=len(judged))
            await self._database.write(inbound.unstage_pdus, judged)
        return len(judged)

    def _forget(self, conn: Connection) -> None:
        now = self._now_ms()
        inbound.forget_before(conn, now - KEEP_TRANSACTIONS_MS)
        fetching.forget_pulls_before(conn, now - KEEP_OTHERS_MS)
        jobs.forget_jobs(conn, now - KEEP_OTHERS_MS)
