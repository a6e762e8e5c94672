"""Following LIVE: typing and presence of our users, for the servers concerned. Lost without harm."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from arbor.log.v1 import live_pb2
from federation.clock import NowMs
from federation.rooms import Rooms
from federation.sender.sender import Sender
from matrixlib.identifiers import server_name_of
from servicekit.errors import MatrixError
from servicekit.log.connection import LogConnection
from servicekit.log.reader import LogMessage, LogReader
from servicekit.log.subjects import LIVE
from servicekit.logging import get_logger

log = get_logger("federation.live")

MAX_MESSAGES = 200
# Who shares rooms with a user is asked for at most this often.
SHARED_MS = 60_000
MAX_SHARED = 10_000


class LiveFollower:
    """Sends typing and presence on.

    Args:
        is_local: whether a server name is ours.
        presence_enabled: whether presence is told at all.
    """

    def __init__(
        self,
        connection: LogConnection,
        sender: Sender,
        rooms: Rooms,
        is_local: Callable[[str], bool],
        now_ms: NowMs,
        *,
        presence_enabled: bool,
    ) -> None:
        self._connection = connection
        self._sender = sender
        self._rooms = rooms
        self._is_local = is_local
        self._now_ms = now_ms
        self._presence_enabled = presence_enabled
        self._shared: OrderedDict[str, tuple[int, frozenset[str]]] = OrderedDict()

    async def run(self) -> None:
        """Follow until cancelled."""
        reader = LogReader(self._connection, LIVE, [], after=None)
        async for batch in reader.batches(MAX_MESSAGES):
            for message in batch.messages:
                try:
                    await self._give(message)
                except (MatrixError, ValueError) as error:
                    log.info("live_not_sent", reason=str(error))

    async def _give(self, message: LogMessage) -> None:
        try:
            live = live_pb2.LiveMessage.FromString(message.data)
        except Exception as error:
            raise ValueError(f"LIVE {message.sequence}: {error}") from error
        match live.WhichOneof("kind"):
            case "typing":
                await self._typing(live.typing)
            case "presence":
                await self._presence(live.presence)
            case _:
                pass

    async def _typing(self, typing: live_pb2.Typing) -> None:
        if not self._is_local(server_name_of(typing.user_id)):
            return
        edu = {
            "edu_type": "m.typing",
            "content": {"room_id": typing.room_id, "user_id": typing.user_id, "typing": typing.typing},
        }
        servers = await self._sender.servers_now(typing.room_id)
        self._sender.give_ephemeral(servers, ("m.typing", typing.room_id, typing.user_id), edu)

    async def _presence(self, presence: live_pb2.Presence) -> None:
        if not self._presence_enabled or not self._is_local(server_name_of(presence.user_id)):
            return
        push: dict[str, Any] = {
            "user_id": presence.user_id,
            "presence": presence.presence,
            "last_active_ago": max(self._now_ms() - presence.last_active_ms, 0),
            "currently_active": presence.currently_active,
        }
        if presence.HasField("status_msg"):
            push["status_msg"] = presence.status_msg
        edu = {"edu_type": "m.presence", "content": {"push": [push]}}
        servers = await self._servers_sharing(presence.user_id)
        self._sender.give_ephemeral(servers, ("m.presence", presence.user_id), edu)

    async def _servers_sharing(self, user_id: str) -> frozenset[str]:
        known = self._shared.get(user_id)
        now = self._now_ms()
        if known is not None and known[0] > now:
            return known[1]
        rooms = await self._rooms.rooms_of_users([user_id])
        servers = frozenset(name for room in rooms for name in room.servers if not self._is_local(name))
        self._shared[user_id] = (now + SHARED_MS, servers)
        if len(self._shared) > MAX_SHARED:
            self._shared.popitem(last=False)
        return servers
