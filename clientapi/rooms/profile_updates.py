"""Carrying a changed profile into the user's member events, and a deactivated user out of all rooms.

The work is a row, stored with the change. Whoever of the clientapi processes claims it does it; what fails
is tried again, so that a change is never lost, only late.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Final

from clientapi.clock import Clock
from clientapi.rooms.membership import Memberships, load_member_profile
from clientapi.rooms.requests import AlreadyThere, Draft, Wish
from clientapi.rooms.send import RoomSender
from clientapi.storage import users
from matrixlib.events import Event, StateKey
from matrixlib.room_versions import RoomVersion
from servicekit.database import Database
from servicekit.errors import MatrixError
from servicekit.logging import get_logger

log = get_logger("clientapi.rooms")

LEASE_MS: Final = 60_000
POLL_S: Final = 10.0
RETRY_MAX_MS: Final = 300_000
PARALLEL: Final = 16


class ProfileUpdates:
    """See the module."""

    def __init__(self, db: Database, sender: RoomSender, memberships: Memberships, clock: Clock) -> None:
        self._db = db
        self._sender = sender
        self._memberships = memberships
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    async def run(self) -> None:
        """Work, for ever."""
        while True:
            self._wake.clear()
            while (
                work := await self._db.write(users.claim_profile_update, self._clock(), LEASE_MS)
            ) is not None:
                await self._do(work)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass  # retries that are due, and what other processes left

    async def _do(self, work: users.ProfileUpdate) -> None:
        try:
            await self._update_rooms(work)
        except MatrixError as error:
            pause_ms = min(1000 * 2 ** min(work.attempts, 10), RETRY_MAX_MS) + secrets.randbelow(1000)
            log.info("profile_update_waits", user_id=work.user_id, error=str(error), retry_ms=pause_ms)
            await self._db.write(users.postpone_profile_update, work, self._clock() + pause_ms)
        else:
            await self._db.write(users.finish_profile_update, work)

    async def _update_rooms(self, work: users.ProfileUpdate) -> None:
        profile = await self._db.read(load_member_profile, work.user_id)
        kinds = ["join", "invite", "knock"] if work.leave_rooms else ["join"]
        found = await self._sender.queries.memberships([work.user_id], kinds=kinds)
        gate = asyncio.Semaphore(PARALLEL)

        async def update(room_id: str) -> None:
            async with gate:
                await self._update_room(work, room_id, profile)

        results = await asyncio.gather(
            *(update(item.room_id) for item in found if not item.outlier), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _update_room(self, work: users.ProfileUpdate, room_id: str, profile: Mapping[str, str]) -> None:
        user_id = work.user_id
        member_key = ("m.room.member", user_id)
        membership = "leave" if work.leave_rooms else "join"

        def decide(_version: RoomVersion, state: Mapping[StateKey, Event]) -> Draft | AlreadyThere:
            member = state.get(member_key)
            if work.leave_rooms:
                if member is None or member.membership in ("leave", "ban"):
                    return AlreadyThere("")
                return Draft("m.room.member", {"membership": "leave"}, user_id)
            if member is None or member.membership != "join":
                return AlreadyThere("")
            content = {
                key: value
                for key, value in member.content.items()
                # Who let one in once is not asked again.
                if key not in ("displayname", "avatar_url", "join_authorised_via_users_server", "reason")
            }
            content.update(profile)
            return (
                AlreadyThere(member.event_id)
                if content == member.content
                else Draft("m.room.member", content, user_id)
            )

        draft = Draft("m.room.member", {"membership": membership}, user_id)
        try:
            await self._sender.send(room_id, Wish(user_id, draft, frozenset({member_key}), decide))
        except MatrixError as error:
            if error.http_status >= 500 or error.http_status == 429:
                raise
            log.info("profile_update_refused", user_id=user_id, room_id=room_id, error=str(error))
