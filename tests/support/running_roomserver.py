"""A whole RoomServer in this process, on a real nats-server, asked over gRPC as other services do.

async with running_roomserver(tmp_path, nats) as world:
    verdict = await world.submit(local(room_id, [event]))
    await world.query.QueryLatest(...)
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from arbor.log.v1 import input_pb2
from arbor.log.v1.output_pb2 import OutputMessage
from arbor.roomserver.v1 import query_pb2_grpc
from roomserver.service import RoomServer
from servicekit.config import Config, load_config
from servicekit.grpc.channels import channel_to
from servicekit.grpc.server import GrpcServer
from servicekit.log.connection import LogConnection
from servicekit.log.reader import LogMessage, LogReader
from servicekit.log.subjects import room_input_subject
from servicekit.log.verdicts import VerdictInbox
from tests.support.nats import NatsProcess


def config_for(tmp_path: Path, nats: NatsProcess, server_name: str = "a.example", **overrides: str) -> Config:
    """A configuration whose data lie below `tmp_path` and whose log is `nats`."""
    return load_config(
        None,
        env={},
        overrides={
            "server_name": server_name,
            "data_dir": str(tmp_path / "data"),
            "run_dir": str(nats.run_dir),
            "log.max_bytes": "256MiB",
            "log.partitions": "4",
            **overrides,
        },
    )


class World:
    """A running RoomServer and a writer beside it."""

    def __init__(
        self,
        server: RoomServer,
        writer: LogConnection,
        inbox: VerdictInbox[input_pb2.Verdict],
        config: Config,
    ) -> None:
        self.server = server
        self.writer = writer
        self.inbox = inbox
        self.config = config
        self.channel: grpc.aio.Channel = channel_to(config, "roomserver")
        self.query = query_pb2_grpc.QueryServiceStub(self.channel)
        self.admin = query_pb2_grpc.AdminServiceStub(self.channel)
        self.last_input = 0

    async def submit(
        self, request: tuple[str, list[input_pb2.InputEntry]], timeout_s: float = 10
    ) -> input_pb2.Verdict:
        """Write an entry and wait for its verdict."""
        room_id, (entry,) = request
        entry.reply_to = self.inbox.subject
        data = input_pb2.InputMessage(room_id=room_id, entries=[entry]).SerializeToString()
        with self.inbox.expect(entry.request_id) as verdict:
            self.last_input = await self.writer.publish(
                room_input_subject(room_id, self.config.log.partitions), data
            )
            return await verdict.wait(timeout_s)

    async def output(self, count: int) -> list[tuple[LogMessage, OutputMessage]]:
        """The first `count` messages of `room.output`."""
        reader = LogReader(self.writer, "OUTPUT", ["room.output.>"])
        found: list[tuple[LogMessage, OutputMessage]] = []
        async with contextlib.aclosing(reader.batches()) as batches, asyncio.timeout(10):
            async for batch in batches:
                found += [(item, OutputMessage.FromString(item.data)) for item in batch.messages]
                if len(found) >= count:
                    break
        return found[:count]


@contextlib.asynccontextmanager
async def running_server(config: Config, address: str | None = None) -> AsyncIterator[RoomServer]:
    """Run a RoomServer for the time of a `with` block."""
    server = RoomServer(config, address)
    await server.start()
    rpc = GrpcServer(config, "roomserver", server.servicers())
    await rpc.start()
    task = asyncio.get_running_loop().create_task(server.run())
    try:
        yield server
    finally:
        await rpc.stop(0)
        await server.drain()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await server.stop()


def decode_verdicts(data: bytes) -> list[tuple[str, input_pb2.Verdict]]:
    """Verdicts by request id."""
    return [(item.request_id, item) for item in input_pb2.Verdicts.FromString(data).verdicts]


@contextlib.asynccontextmanager
async def running_roomserver(tmp_path: Path, nats: NatsProcess, **overrides: str) -> AsyncIterator[World]:
    """Run a RoomServer and connect a writer."""
    config = config_for(tmp_path, nats, **overrides)
    async with running_server(config) as server, writing_world(config, server) as world:
        yield world


@contextlib.asynccontextmanager
async def writing_world(config: Config, server: RoomServer) -> AsyncIterator[World]:
    """Connect a writer to a RoomServer that runs."""
    writer = await LogConnection.connect(config, "clientapi")
    inbox = await VerdictInbox.open(writer, decode_verdicts)
    world = World(server, writer, inbox, config)
    try:
        yield world
    finally:
        await world.channel.close()
        inbox.close()
        await writer.close()
