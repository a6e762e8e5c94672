"""Forgetting tokens that another process ended: the log tells (`user.device`)."""

import asyncio

from arbor.log.v1 import output_pb2
from clientapi.accounts.sessions import Sessions
from servicekit.log.connection import LogConnection
from servicekit.log.errors import LogError, PositionLost
from servicekit.log.reader import LogReader
from servicekit.log.subjects import OUTPUT
from servicekit.logging import get_logger

log = get_logger("clientapi.sessions")

RETRY_S = 0.5


async def follow_revocations(connection: LogConnection, sessions: Sessions) -> None:
    """Follow `user.device` from now on and forget what it concerns, for ever.

    Nothing is stored: what is in memory began with this process, so nothing before it matters. Where
    messages may have been missed, everything is forgotten, which costs one look-up a token.
    """
    while True:
        try:
            info = await connection.load_stream(OUTPUT)
            if info is None:
                await asyncio.sleep(RETRY_S)
                continue
            reader = LogReader(
                connection, OUTPUT, ["user.device.>"], after=info.last_sequence, epoch=info.epoch
            )
            sessions.forget_everything()
            async for batch in reader.batches():
                for message in batch.messages:
                    _apply(sessions, message.data)
        except PositionLost as error:
            log.warning("revocations_missed", error=str(error))
        except LogError as error:
            log.info("revocations_wait", error=str(error))
            await asyncio.sleep(RETRY_S)


def _apply(sessions: Sessions, data: bytes) -> None:
    message = output_pb2.OutputMessage.FromString(data)
    if message.user_id:
        sessions.forget_user(message.user_id)
