"""`arbor federation status|joins|reset`: how every other server stands and how far joins of rooms of other servers
are, asked of the federation service that runs.
"""

import asyncio
import time

import grpc
import grpc.aio

from arbor.federation.v1 import federation_pb2 as pb
from arbor.federation.v1 import federation_pb2_grpc
from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.grpc import channel_to, matrix_error_from

WAIT_S = 30.0
_STATES = {
    pb.DESTINATION_STATE_IDLE: "idle",
    pb.DESTINATION_STATE_SENDING: "sending",
    pb.DESTINATION_STATE_BACKING_OFF: "waiting",
    pb.DESTINATION_STATE_CATCHING_UP: "catching up",
}
_JOIN_STATES = {
    pb.JOIN_STATE_SENT: "sent",
    pb.JOIN_STATE_IMPORTING: "importing",
    pb.JOIN_STATE_COMPLETING: "completing",
    pb.JOIN_STATE_DONE: "done",
    pb.JOIN_STATE_FAILED: "failed",
}
_JOINS_HEADER = ("user", "room", "through", "state", "begun", "tries", "next try", "error")
_HEADER = ("server", "state", "rooms", "edus", "oldest", "failures", "next try", "last success", "last error")


def federation(config: Config, action: str, server: str | None) -> int:
    """Print the destinations or the joins as a table, or have a destination tried at once."""
    if action == "reset" and server is None:
        raise CommandError("name the server that shall be tried: arbor federation reset SERVER")
    return asyncio.run(_ask(config, action, server or ""))


async def _ask(config: Config, action: str, server: str) -> int:
    async with channel_to(config, "federation", caller="cli") as channel:
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        try:
            if action == "reset":
                answer = await stub.ResetDestination(
                    pb.ResetDestinationRequest(server_name=server), timeout=WAIT_S
                )
                print(f"{server} is tried now" if answer.known else f"{server} was never sent anything")
                return 0 if answer.known else 1
            if action == "joins":
                joins = await stub.ListJoins(pb.ListJoinsRequest(), timeout=WAIT_S)
                print("\n".join(table_of_joins(list(joins.joins), _now_ms())))
                return 0
            listed = await stub.ListDestinations(
                pb.ListDestinationsRequest(server_name=server), timeout=WAIT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise CommandError(f"no federation service runs with {config.data_dir}") from error
            raise CommandError(str(matrix_error_from(error))) from error
    print("\n".join(table(list(listed.destinations), _now_ms())))
    return 0


def table(destinations: list[pb.Destination], now_ms: int) -> list[str]:
    """Return the lines of the table; times as seen from `now_ms` (milliseconds since 1970)."""
    return _lines([_HEADER, *(_row(destination, now_ms) for destination in destinations)])


def table_of_joins(joins: list[pb.Join], now_ms: int) -> list[str]:
    """Return the lines of the table of joins; times as seen from `now_ms` (milliseconds since 1970)."""
    return _lines(
        [
            _JOINS_HEADER,
            *(
                (
                    join.user_id,
                    join.room_id,
                    join.resident,
                    _JOIN_STATES.get(join.state, "?"),
                    _ago(join.created_ms, now_ms),
                    str(join.attempts or "-"),
                    _next_try(join.next_try_ms, now_ms) if join.state == pb.JOIN_STATE_COMPLETING else "-",
                    join.error,
                )
                for join in joins
            ),
        ]
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]
        ).rstrip()
        for row in rows
    ]


def _row(destination: pb.Destination, now_ms: int) -> tuple[str, ...]:
    return (
        destination.server_name,
        _STATES.get(destination.state, "?"),
        str(destination.pending_rooms),
        str(destination.pending_edus),
        _ago(destination.oldest_pending_ms, now_ms),
        str(destination.failures),
        _next_try(destination.next_try_ms, now_ms),
        _ago(destination.last_success_ms, now_ms),
        destination.last_error,
    )


def _next_try(at_ms: int, now_ms: int) -> str:
    return f"in {_span(at_ms - now_ms)}" if at_ms > now_ms else "now"


def _ago(at_ms: int, now_ms: int) -> str:
    return f"{_span(now_ms - at_ms)} ago" if at_ms else "-"


def _span(milliseconds: int) -> str:
    seconds = max(milliseconds, 0) // 1000
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
