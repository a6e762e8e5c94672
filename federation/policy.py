"""Asking policy servers to sign (server-server API, "Policy Servers").

What is made here is asked for each time it is built, and not sent without. What comes from other servers is asked for
once: the answer is remembered, a refusal too, and what was judged before is not asked for at all. Where no signature
is to be had the event goes on without one, and the RoomServer keeps it from everybody.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from arbor.roomserver.v1 import query_pb2
from federation.outbound.client import FederationClient
from federation.outbound.errors import RemoteError, RemoteRefused, Unreachable
from federation.rooms import Rooms, RoomView
from federation.turns import Turns
from matrixlib.events import Event, EventTooLargeError
from matrixlib.identifiers import server_name_of
from matrixlib.policy_servers import (
    KEY_ID,
    PolicyServer,
    is_exempt,
    is_signed,
    policy_server_of,
    with_signature,
)
from matrixlib.signing import SignatureError
from servicekit import metrics
from servicekit.errors import MatrixError, forbidden
from servicekit.logging import get_logger

log = get_logger("federation.policy")

SIGN_PATH = "/_matrix/policy/v1/sign"
TIMEOUT_S = 10.0
# All that came at once from another server, however much it is: its transactions wait for it.
RECEIVED_TIMEOUT_S = 15.0
# So long a policy server that gave no answer is not asked for what others sent.
AWAY_S = 20.0
AT_ONCE = 8
MAX_REMEMBERED = 10_000

# Errors of a policy server that a client is told, with the status it gives them. Others could be taken for errors of
# this server: that the session has ended (M_UNKNOWN_TOKEN), or
# NOTSPEC: that there is no such endpoint (M_UNRECOGNIZED, though "that error SHOULD be provided verbatim").
_TOLD = frozenset(
    {"M_FORBIDDEN", "M_NOT_FOUND", "M_BAD_JSON", "M_NOT_JSON", "M_TOO_LARGE", "M_LIMIT_EXCEEDED"}
)

_asked = metrics.counter(
    "federation_policy_signatures_total", "Signatures asked of policy servers", ["whose", "outcome"]
)


class PolicySignatures:
    """See the module."""

    def __init__(self, client: FederationClient, rooms: Rooms) -> None:
        self._client = client
        self._rooms = rooms
        # One question for an event that several servers send at a time.
        self._turns = Turns()
        # (event id, policy server) -> the event's signature as answered, or the refusal; those used last at the end.
        self._answers: OrderedDict[tuple[str, PolicyServer], Any] = OrderedDict()
        self._away_until_s: dict[str, float] = {}

    # -- events that are made here

    async def of_ours(
        self, room_id: str, server: PolicyServer, events: Sequence[Event]
    ) -> list[Event | MatrixError]:
        """Return events of local users with the signatures they need, or why the policy server gives none.

        Args:
            server: that the room's state names; whether it has a user in the room is looked at here.
        """
        if not await self._is_in_use(room_id, server):
            return list(events)
        slots = asyncio.Semaphore(AT_ONCE)

        async def sign(event: Event) -> Event | MatrixError:
            if is_exempt(event) or is_signed(event, server):
                return event
            async with slots:
                return await self._ask_for_ours(server, event)

        return list(await asyncio.gather(*map(sign, events)))

    async def of_join(
        self, join: Event, state: Sequence[Event], servers: Collection[str], returned: Any
    ) -> Event:
        """Return our join of another server's room with the signature that it needs there.

        Args:
            state: the room's before the join.
            servers: those that are told to be in the room, where their members are not among the state.
            returned: the join as the resident server gave it back, where the signature may be already.

        Raises:
            MatrixError: the policy server gives none.
        """
        server = next((named for event in state if (named := policy_server_of(event)) is not None), None)
        joined = {server_name_of(event.state_key or "") for event in state if event.membership == "join"}
        if server is None or server.name not in joined | set(servers):
            return join
        signatures = returned.get("signatures") if isinstance(returned, Mapping) else None
        try:
            return with_signature(join, server, signatures)
        except (SignatureError, EventTooLargeError):
            signed = await self._ask_for_ours(server, join)
        if isinstance(signed, MatrixError):
            raise signed
        return signed

    async def _is_in_use(self, room_id: str, server: PolicyServer) -> bool:
        view = await self._rooms.view(room_id)
        if view is not None and view.policy_server == server:
            return True
        # The view may be behind what was just written.
        return server.name in await self._rooms.servers(room_id)

    async def _ask_for_ours(self, server: PolicyServer, event: Event) -> Event | MatrixError:
        try:
            answer = await self._ask(server, event, server_name_of(event.sender), ignore_backoff=True)
            signed = with_signature(event, server, answer)
        except (RemoteError, SignatureError, EventTooLargeError) as error:
            _asked.labels("ours", type(error).__name__).inc()
            log.info("policy_not_signed", room=event.room_id, server=server.name, reason=str(error))
            return told(error)
        _asked.labels("ours", "signed").inc()
        return signed

    # -- events of other servers

    async def of_received(self, view: RoomView, events: Sequence[Event]) -> list[Event]:
        """Return events with what signatures of the room's policy server they lacked and could be had."""
        server = view.policy_server
        if server is None:
            return list(events)
        missing = {
            event.event_id: event for event in events if not is_exempt(event) and not is_signed(event, server)
        }
        for event_id in await self._judged(view, list(missing)):
            missing.pop(event_id, None)
        signed: dict[str, Event] = {}
        slots = asyncio.Semaphore(AT_ONCE)

        async def sign(event: Event) -> None:
            async with slots:
                try:
                    signed[event.event_id] = await self._ask_once(view, server, event)
                except MatrixError as error:
                    log.info("policy_not_signed", room=view.room_id, server=server.name, reason=str(error))

        try:
            async with asyncio.timeout(RECEIVED_TIMEOUT_S), asyncio.TaskGroup() as group:
                for event in missing.values():
                    group.create_task(sign(event))
        except TimeoutError:
            log.info("policy_not_signed", room=view.room_id, server=server.name, reason="too slow")
        return [signed.get(event.event_id, event) for event in events]

    async def of_one(self, view: RoomView, event: Event) -> Event:
        """Return an event that another server wants us to take, with the signature it needs.

        Raises:
            MatrixError: the policy server gives none.
        """
        server = view.policy_server
        if server is None or is_exempt(event) or is_signed(event, server):
            return event
        return await self._ask_once(view, server, event)

    async def _judged(self, view: RoomView, event_ids: Sequence[str]) -> list[str]:
        """Those of these events that were judged before: no signature changes that."""
        if not event_ids:
            return []
        try:
            found = await self._rooms.events(event_ids, view.room_id)
        except MatrixError:
            return []
        again = (query_pb2.EVENT_STATUS_WAITING, query_pb2.EVENT_STATUS_OUTLIER)
        return [item.event.event_id for item in found if item.status not in again]

    async def _ask_once(self, view: RoomView, server: PolicyServer, event: Event) -> Event:
        """Ask, or repeat what was answered before. Raises MatrixError."""
        key = (event.event_id, server)
        async with self._turns.of(event.event_id):
            answer = self._answers.get(key)
            if answer is None:
                answer = await self._ask_for_theirs(view, server, event)
            else:
                self._answers.move_to_end(key)
        if isinstance(answer, MatrixError):
            raise answer
        try:
            return with_signature(event, server, answer)
        except (SignatureError, EventTooLargeError) as error:
            raise told(error) from error

    async def _ask_for_theirs(self, view: RoomView, server: PolicyServer, event: Event) -> Any:
        now_s = asyncio.get_running_loop().time()
        if self._away_until_s.get(server.name, 0.0) > now_s:
            return told(Unreachable(server.name, "it did not answer a moment ago"))
        try:
            answer = await self._ask(server, event, view.speaks_as, ignore_backoff=False)
        except (RemoteError, SignatureError) as error:
            _asked.labels("theirs", type(error).__name__).inc()
            refusal = told(error)
            if isinstance(error, RemoteRefused) and error.http_status < 500 and error.http_status != 429:
                self._remember((event.event_id, server), refusal)
            elif isinstance(error, Unreachable):
                self._note_away(server.name, now_s)
            return refusal
        _asked.labels("theirs", "answered").inc()
        self._remember((event.event_id, server), {server.name: _of_server(answer, server)})
        return self._answers[event.event_id, server]

    def _remember(self, key: tuple[str, PolicyServer], answer: Any) -> None:
        self._answers[key] = answer
        if len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)

    def _note_away(self, server_name: str, now_s: float) -> None:
        self._away_until_s = {name: until for name, until in self._away_until_s.items() if until > now_s}
        self._away_until_s[server_name] = now_s + AWAY_S

    # -- both

    async def _ask(
        self, server: PolicyServer, event: Event, origin: str | None, *, ignore_backoff: bool
    ) -> Any:
        if server.key is None:
            raise SignatureError(f"what the room has as the key of {server.name} is none")
        return await self._client.request(
            server.name,
            "POST",
            SIGN_PATH,
            content_json=event.pdu_json,
            origin=origin,
            timeout_s=TIMEOUT_S,
            ignore_backoff=ignore_backoff,
            # That it signs slowly says nothing of whether it takes transactions.
            count=False,
            to_ourselves=True,
        )


def told(error: RemoteError | SignatureError | EventTooLargeError) -> MatrixError:
    """What the client hears whose event got no signature."""
    if isinstance(error, RemoteRefused):
        if error.errcode in _TOLD and 400 <= error.http_status < 500 and error.http_status != 401:
            message = error.message or "The room's policy server refuses the event"
            return MatrixError(error.errcode, error.http_status, message, error.retry_after_ms)
        if error.http_status < 500:
            return forbidden("The room's policy server refuses the event")
    if isinstance(error, EventTooLargeError):
        return MatrixError("M_TOO_LARGE", 413, "The event has no room for the policy server's signature")
    if isinstance(error, SignatureError):
        return forbidden("The room's policy server did not sign the event as the room asks for")
    return MatrixError("M_UNKNOWN", 502, "The room's policy server does not answer")


def _of_server(answer: Any, server: PolicyServer) -> dict[str, str]:
    """The little of an answer that is remembered."""
    of_server = answer.get(server.name) if isinstance(answer, Mapping) else None
    found = of_server.get(KEY_ID) if isinstance(of_server, Mapping) else None
    return {KEY_ID: found} if isinstance(found, str) and len(found) < 200 else {}
