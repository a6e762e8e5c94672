"""`arbor explain` and `arbor collect`: questions to the RoomServer that runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio
import orjson

from arbor.roomserver.v1 import query_pb2 as pb
from arbor.roomserver.v1.query_pb2_grpc import AdminServiceStub, QueryServiceStub
from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.grpc import channel_to, matrix_error_from

EXPLAIN_S = 60.0
COLLECT_S = 3600.0
Answer = TypeVar("Answer")
_STATUS = {
    pb.EVENT_STATUS_ACCEPTED: "accepted",
    pb.EVENT_STATUS_SOFT_FAILED: "soft-failed: kept, but shown to nobody",
    pb.EVENT_STATUS_REJECTED: "rejected: part of the graph, never of the state",
    pb.EVENT_STATUS_WAITING: "waiting for events that are not here",
    pb.EVENT_STATUS_OUTLIER: "outlier: known without a place in the room's graph",
}


def explain(config: Config, event_id: str) -> int:
    """Print why an event stands as it does; returns 1 when it is not known."""
    answer = asyncio.run(ask_explanation(config, event_id))
    if not answer.known:
        print(f"{event_id} is not known")
        return 1
    print("\n".join(explanation(answer)))
    return 0


def collect(config: Config, *, dry_run: bool) -> int:
    """Delete, or only count, what nothing refers to, and print rows by table."""
    answer = asyncio.run(ask_collection(config, dry_run=dry_run))
    print("\n".join(collection(answer, dry_run=dry_run)))
    return 0


async def ask_explanation(config: Config, event_id: str) -> pb.ExplainEventResponse:
    """Ask for an explanation."""

    async def ask(channel: grpc.aio.Channel) -> pb.ExplainEventResponse:
        request = pb.ExplainEventRequest(event_id=event_id)
        return await QueryServiceStub(channel).ExplainEvent(request, timeout=EXPLAIN_S)

    return await _ask(config, ask)


async def ask_collection(config: Config, *, dry_run: bool) -> pb.CollectGarbageResponse:
    """Have garbage collected, or counted."""

    async def ask(channel: grpc.aio.Channel) -> pb.CollectGarbageResponse:
        request = pb.CollectGarbageRequest(dry_run=dry_run)
        return await AdminServiceStub(channel).CollectGarbage(request, timeout=COLLECT_S)

    return await _ask(config, ask)


async def _ask(config: Config, ask: Callable[[grpc.aio.Channel], Awaitable[Answer]]) -> Answer:
    async with channel_to(config, "roomserver", caller="cli") as channel:
        try:
            return await ask(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise CommandError(f"no roomserver runs with {config.data_dir}") from error
            raise CommandError(f"the roomserver: {matrix_error_from(error).message}") from error


def explanation(answer: pb.ExplainEventResponse) -> list[str]:
    """Return the lines that explain a known event."""
    stored = answer.event
    lines = [
        f"{stored.event.event_id} in {stored.room_id} (room version {stored.room_version})",
        f"  {_describe(stored.event.pdu_json)}",
        f"status: {_STATUS.get(stored.status, 'unknown')}",
    ]
    if answer.decision.rule:
        lines.append(f"rule: {answer.decision.rule}")
    if answer.decision.reason:
        lines.append(f"reason: {answer.decision.reason}")
    if stored.redacted_because.event_id:
        lines.append(f"redacted by: {stored.redacted_because.event_id}")
    if answer.missing_event_ids:
        lines.append("waits for:")
        lines += [f"  {event_id}" for event_id in answer.missing_event_ids]
    if answer.check:
        lines.append(f"checked against ({answer.check}):")
        lines += [f"  {_describe(event.pdu_json)}  {event.event_id}" for event in answer.checked_against]
        if not answer.checked_against:
            lines.append("  nothing")
    if answer.resolution:
        lines.append("the state before it was resolved:")
        lines += [f"  {line}" for line in answer.resolution]
    return lines


def collection(answer: pb.CollectGarbageResponse, *, dry_run: bool) -> list[str]:
    """Return the lines of a table: rows that went, or would go."""
    rows = [("table", "would go" if dry_run else "deleted")]
    rows += [(item.table, str(item.rows)) for item in answer.collected]
    width = max(len(table) for table, _ in rows)
    count = max(len(number) for _, number in rows)
    return [f"{table:{width}}  {number:>{count}}" for table, number in rows]


def _describe(pdu_json: bytes) -> str:
    """Say in a line what an event is; other servers' texts without control characters."""
    pdu = orjson.loads(pdu_json)
    text = f"{pdu.get('type')}"
    if "state_key" in pdu:
        text += f"|{pdu['state_key']}"
    content = pdu.get("content")
    membership = content.get("membership") if isinstance(content, dict) else None
    if pdu.get("type") == "m.room.member" and isinstance(membership, str):
        text += f" {membership}"
    text += f" by {pdu.get('sender')}"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
