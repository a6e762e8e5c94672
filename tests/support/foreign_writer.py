"""Another server's events, put into a room of ours as the federation receiver would put them.

A `ForeignWriter` speaks for one user of a server that does not exist: it asks the RoomServer for the room's
heads, builds and signs an event on them with a key of its own, and writes it to INPUT. Signatures are checked
where federation receives, so the RoomServer takes its events as it takes a receiver's.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from matrixlib.event_auth import auth_types_for_event
from matrixlib.event_builder import build_event, next_depth
from matrixlib.events import Event, parse_event
from matrixlib.room_versions import ROOM_VERSIONS
from matrixlib.signing import generate_signing_key
from servicekit.config import load_config
from servicekit.grpc.channels import channel_to
from servicekit.log.connection import LogConnection
from servicekit.log.subjects import room_input_subject
from tests.support.arbor_server import ArborServer

CALLER = "federation"


class ForeignWriter:
    """One user of another server, in rooms of ours."""

    def __init__(
        self, queries: "query_pb2_grpc.QueryServiceAsyncStub", log: LogConnection, user_id: str
    ) -> None:
        self.queries = queries
        self.user_id = user_id
        self._log = log
        self._server_name = user_id.split(":", 1)[1]
        self._key = generate_signing_key("foreign")
        self._count = 0
        self._submitted = 0

    async def latest(self, room_id: str) -> query_pb2.QueryLatestResponse:
        """The room's heads and its whole state."""
        return await self.queries.QueryLatest(query_pb2.QueryLatestRequest(room_id=room_id, all_state=True))

    async def stored_events(self, event_ids: list[str]) -> list[query_pb2.StoredEvent]:
        """The events as the RoomServer has them."""
        found: list[query_pb2.StoredEvent] = []
        for start in range(0, len(event_ids), 500):
            request = query_pb2.QueryEventsRequest(event_ids=event_ids[start : start + 500])
            found += (await self.queries.QueryEvents(request)).events
        return found

    async def write(
        self, room_id: str, event_type: str, content: dict[str, object], state_key: str | None = None
    ) -> str:
        """Build an event on the present heads and write it to INPUT; returns its id, judged or not."""
        latest = await self.latest(room_id)
        event = self.build(latest, self.state_of(latest), event_type, content, state_key, room_id=room_id)
        await self.submit(room_id, event)
        return event.event_id

    def state_of(self, latest: query_pb2.QueryLatestResponse) -> dict[tuple[str, str], Event]:
        """The current state that the RoomServer told."""
        version = ROOM_VERSIONS[latest.room_version]
        state: dict[tuple[str, str], Event] = {}
        for found in latest.state:
            event = parse_event(found.pdu_json, version, event_id=found.event_id)
            assert event.state_key is not None
            state[event.type, event.state_key] = event
        return state

    def build(
        self,
        latest: query_pb2.QueryLatestResponse,
        state: Mapping[tuple[str, str], Event],
        event_type: str,
        content: dict[str, object],
        state_key: str | None = None,
        *,
        room_id: str,
        prev: Event | None = None,
        sender: str = "",
    ) -> Event:
        """Build an event on `prev`, or on the heads that the RoomServer told, with `state` before it."""
        version = ROOM_VERSIONS[latest.room_version]
        sender = sender or self.user_id
        wanted = auth_types_for_event(version, event_type, sender, state_key, content)
        self._count += 1
        return build_event(
            version,
            room_id=room_id,
            sender=sender,
            type=event_type,
            content=content,
            state_key=state_key,
            prev_events=list(latest.forward_extremities) if prev is None else [prev.event_id],
            auth_event_ids=[state[key].event_id for key in sorted(wanted) if key in state],
            depth=next_depth(version, [latest.depth if prev is None else prev.depth]),
            origin_server_ts=time.time_ns() // 1_000_000,
            server_name=self._server_name,
            signing_key=self._key,
            event_id=f"$foreign{self._count}:{self._server_name}",
        )

    async def submit(
        self,
        room_id: str,
        event: Event,
        *,
        outliers: Sequence[Event] = (),
        state_before: Sequence[Event] = (),
    ) -> None:
        """Write an event to INPUT, with the state before it where what came before it is not sent."""
        self._submitted += 1
        submit = input_pb2.SubmitEvents(
            origin=input_pb2.EVENT_ORIGIN_FEDERATION,
            room_version=event.room_version.identifier,
            events=[common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)],
            outliers=[common_pb2.Event(event_id=one.event_id, pdu_json=one.pdu_json) for one in outliers],
            state_before_event_ids=[one.event_id for one in state_before],
            origin_server=self._server_name,
        )
        entry = input_pb2.InputEntry(
            request_id=f"foreign.{self._server_name}.{self._submitted}",
            created_ms=time.time_ns() // 1_000_000,
            submit_events=submit,
        )
        message = input_pb2.InputMessage(room_id=room_id, entries=[entry])
        subject = room_input_subject(room_id, self._log.partitions)
        await self._log.publish(subject, message.SerializeToString())


@asynccontextmanager
async def foreign_writer(
    server: ArborServer, user_id: str = "@mallory:foreign.test"
) -> AsyncIterator[ForeignWriter]:
    """A foreign writer at a running Arbor."""
    config = load_config(server.config_path, env={})
    log = await LogConnection.connect(config, CALLER)
    channel = channel_to(config, "roomserver", caller=CALLER)
    try:
        await log.wait_for_streams()
        stub = query_pb2_grpc.QueryServiceStub(channel)
        yield ForeignWriter(stub, log, user_id)
    finally:
        await channel.close()
        await log.close()
