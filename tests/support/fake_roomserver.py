"""Stand-ins for the log and the RoomServer, in memory, for tests of what writes to them.

They judge as the contract says (heads, transaction keys, auth rules) and can misbehave on purpose: lose
acks or verdicts, be away, let a foreign writer be quicker. `FakeLog` looks like a `LogConnection`,
`FakeRoomServer` like the RoomServer's query service.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from arbor.log.v1 import common_pb2, input_pb2
from arbor.roomserver.v1 import query_pb2, query_pb2_grpc
from matrixlib.event_auth import Refused, auth_types_for, check_event_auth, state_types_for
from matrixlib.events import Event, StateKey, parse_event, redact_event
from matrixlib.identifiers import server_name_of
from matrixlib.policy_servers import POLICY_KEY, is_exempt, is_signed, policy_server_of
from matrixlib.room_versions import RoomVersion, get_room_version
from servicekit.errors import unavailable
from servicekit.log.errors import LogError, LogUnavailable, PublishTimeout


@dataclass
class FakeRoom:
    """A room as the fake keeps it."""

    room_id: str
    version: RoomVersion
    extremities: tuple[str, ...] = ()
    depth: int = 0
    state: dict[StateKey, Event] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    output_sequence: int = 0


class _Nats:
    """The raw subscriptions of a connection."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., None]] = {}

    async def subscribe_raw(self, subject: str, handler: Callable[..., None]) -> int:
        self.handlers[subject] = handler
        return len(self.handlers)

    def unsubscribe_raw(self, sid: int) -> None:
        pass


class FakeLog:
    """Looks like a `LogConnection` to a writer."""

    partitions = 16

    def __init__(self, roomserver: "FakeRoomServer", instance: str = "one") -> None:
        self.service = "clientapi"
        self.instance = instance
        self.nc = _Nats()
        self.published: list[tuple[str, bytes]] = []
        self.lose_acks = False
        self._roomserver = roomserver
        self._connected = asyncio.Event()
        self._connected.set()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def disconnect(self) -> None:
        """Lose the connection."""
        self._connected.clear()

    def reconnect(self) -> None:
        """Have it back."""
        self._connected.set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    async def close(self) -> None:
        pass

    def publish_callback(
        self,
        subject: str,
        data: bytes,
        on_done: Callable[[int, LogError | None], None],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        if not self.connected:
            on_done(0, LogUnavailable("away"))
            return
        self.published.append((subject, data))
        loop = asyncio.get_running_loop()
        sequence = self._roomserver.next_input()
        if self.lose_acks:
            loop.call_soon(on_done, 0, PublishTimeout("lost"))
        else:
            loop.call_soon(on_done, sequence, None)
        if subject.startswith("room.input."):
            loop.call_soon(self._roomserver.take, self, sequence, data)

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float = 5.0
    ) -> int:
        if not self.connected:
            raise LogUnavailable("away")
        self.published.append((subject, data))
        return self._roomserver.next_input()


class FakeRoomServer(query_pb2_grpc.QueryServiceServicer):
    """See the module."""

    def __init__(self) -> None:
        self.rooms: dict[str, FakeRoom] = {}
        self.by_key: dict[tuple[str, ...], tuple[str, int]] = {}
        self.outcomes: dict[str, input_pb2.Verdict] = {}
        self.batches: list[input_pb2.InputMessage] = []
        self.before_judging: Callable[[input_pb2.InputMessage], None] = lambda message: None
        self.lose_verdicts = False
        self.away = False
        self.queries = 0
        self.stale = 0
        self._input = 0
        self._output = 100
        self._waiting: list[tuple[FakeLog, int, bytes]] = []

    def next_input(self) -> int:
        """Return the next INPUT sequence."""
        self._input += 1
        return self._input

    # -- judging

    def take(self, log: FakeLog, sequence: int, data: bytes) -> None:
        """Judge a message, now or when the RoomServer is back."""
        if self.away:
            self._waiting.append((log, sequence, data))
            return
        message = input_pb2.InputMessage.FromString(data)
        self.batches.append(message)
        self.before_judging(message)
        answers: dict[str, input_pb2.Verdicts] = {}
        for entry in message.entries:
            verdict = self._judge(message.room_id, entry)
            answers.setdefault(entry.reply_to, input_pb2.Verdicts()).verdicts.append(verdict)
        if not self.lose_verdicts:
            loop = asyncio.get_running_loop()
            for reply_to, verdicts in answers.items():
                loop.call_soon(log.nc.handlers[reply_to], b"", b"", verdicts.SerializeToString(), None)

    @property
    def waiting(self) -> int:
        """How many messages are to be judged when it comes back."""
        return len(self._waiting)

    def come_back(self) -> None:
        """Judge what waited."""
        self.away = False
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self.take(*item)

    def _judge(self, room_id: str, entry: input_pb2.InputEntry) -> input_pb2.Verdict:
        submit = entry.submit_events
        key = _key(entry.transaction_key) if entry.HasField("transaction_key") else None
        if key is not None and key in self.by_key:
            event_id, sequence = self.by_key[key]
            return input_pb2.Verdict(
                request_id=entry.request_id,
                code=input_pb2.VERDICT_CODE_DUPLICATE,
                event_id=event_id,
                output_sequence=sequence,
            )
        version = get_room_version(submit.room_version)
        assert version is not None
        events = [parse_event(item.pdu_json, version) for item in submit.events]
        assert [event.event_id for event in events] == [item.event_id for item in submit.events]
        room = self.rooms.get(room_id) or FakeRoom(room_id, version)
        if set(submit.built_on) != set(room.extremities) and not submit.may_fork:
            self.stale += 1
            return self._stale(entry, room, events)
        state = dict(room.state)
        for index, event in enumerate(events):
            verdict = check_event_auth(event, {k: state[k] for k in state_types_for(event) if k in state})
            if isinstance(verdict, Refused):
                return input_pb2.Verdict(
                    request_id=entry.request_id,
                    code=input_pb2.VERDICT_CODE_REJECTED,
                    rejection=input_pb2.Rejection(
                        rule=verdict.rule, reason=verdict.reason, errcode="M_FORBIDDEN", event_index=index
                    ),
                )
            if not _is_recommended(event, state):
                return input_pb2.Verdict(
                    request_id=entry.request_id,
                    code=input_pb2.VERDICT_CODE_REJECTED,
                    rejection=input_pb2.Rejection(
                        rule="policy", reason="not signed", errcode="M_FORBIDDEN", event_index=index
                    ),
                )
            if event.is_state:
                state[event.key] = event
            policy = state.get(POLICY_KEY)
            if policy is not None and policy.event_id == event.redacts:
                state[POLICY_KEY] = redact_event(policy)
        self._output += 1
        room.state = state
        for event in events:
            room.events[event.event_id] = event
            room.order.append(event.event_id)
            kept = set(room.extremities) - set(event.prev_event_ids)
            room.extremities = (*sorted(kept), event.event_id)
            room.depth = max(room.depth, event.depth)
        room.output_sequence = self._output
        self.rooms[room_id] = room
        last = events[-1].event_id
        if key is not None:
            self.by_key[key] = (last, self._output)
        verdict_ = input_pb2.Verdict(
            request_id=entry.request_id,
            code=input_pb2.VERDICT_CODE_ACCEPTED,
            event_id=last,
            output_sequence=self._output,
        )
        self.outcomes[last] = verdict_
        return verdict_

    def _stale(self, entry: input_pb2.InputEntry, room: FakeRoom, events: list[Event]) -> input_pb2.Verdict:
        stale = input_pb2.StaleHeads(
            forward_extremities=room.extremities, depth=room.depth, output_sequence=room.output_sequence
        )
        if POLICY_KEY in room.state:
            policy = room.state[POLICY_KEY]
            stale.changed_auth_state.add(event_id=policy.event_id, pdu_json=policy.pdu_json)
        for event in events:
            for key in auth_types_for(event):
                now = room.state.get(key)
                if now is None:
                    stale.removed_auth_state.add(type=key[0], state_key=key[1])
                elif now.event_id not in event.auth_event_ids:
                    stale.changed_auth_state.add(event_id=now.event_id, pdu_json=now.pdu_json)
        return input_pb2.Verdict(request_id=entry.request_id, code=input_pb2.VERDICT_CODE_STALE, stale=stale)

    def insert(self, event: Event) -> None:
        """Put in an event that no writer here sent."""
        room = self.rooms[event.room_id]
        self._output += 1
        room.events[event.event_id] = event
        room.order.append(event.event_id)
        kept = set(room.extremities) - set(event.prev_event_ids)
        room.extremities = (*sorted(kept), event.event_id)
        room.depth = max(room.depth, event.depth)
        room.output_sequence = self._output
        if event.is_state:
            room.state[event.key] = event

    # -- queries

    async def QueryLatest(self, request: Any, context: Any) -> query_pb2.QueryLatestResponse:  # noqa: N802
        self._answering()
        room = self.rooms.get(request.room_id)
        if room is None:
            return query_pb2.QueryLatestResponse(exists=False)
        keys = (
            list(room.state)
            if request.all_state
            else [(key.type, key.state_key) for key in request.state_keys]
        )
        return query_pb2.QueryLatestResponse(
            exists=True,
            room_version=room.version.identifier,
            forward_extremities=room.extremities,
            depth=room.depth,
            state=[
                common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)
                for key in keys
                if (event := room.state.get(key)) is not None
            ],
            output_sequence=room.output_sequence,
            participating=any(
                event.membership == "join" for key, event in room.state.items() if key[0] == "m.room.member"
            ),
        )

    async def QueryEvents(self, request: Any, context: Any) -> query_pb2.QueryEventsResponse:  # noqa: N802
        self._answering()
        answer = query_pb2.QueryEventsResponse()
        for room in self.rooms.values():
            if request.room_id in ("", room.room_id):
                for event_id in request.event_ids:
                    if event_id in room.events:
                        event = room.events[event_id]
                        redactions = [
                            common_pb2.Event(event_id=other.event_id, pdu_json=other.pdu_json)
                            for other in room.events.values()
                            if other.type == "m.room.redaction"
                            and event_id in (other.content.get("redacts"), other.redacts)
                        ]
                        answer.events.add(
                            redacted_because=redactions[0] if redactions else None,
                            event=common_pb2.Event(event_id=event_id, pdu_json=event.pdu_json),
                            room_id=room.room_id,
                            room_version=room.version.identifier,
                            status=query_pb2.EVENT_STATUS_ACCEPTED,
                            depth=event.depth,
                        )
        return answer

    async def QueryMemberships(  # noqa: N802
        self, request: Any, context: Any
    ) -> query_pb2.QueryMembershipsResponse:
        self._answering()
        answer = query_pb2.QueryMembershipsResponse()
        for room in self.rooms.values():
            if request.room_id not in ("", room.room_id):
                continue
            for (type_, user_id), event in room.state.items():
                if (
                    type_ == "m.room.member"
                    and (not request.user_ids or user_id in request.user_ids)
                    and (not request.memberships or event.membership in request.memberships)
                ):
                    answer.memberships.add(
                        room_id=room.room_id,
                        membership=common_pb2.Membership(
                            user_id=user_id, membership=event.membership or "", event_id=event.event_id
                        ),
                    )
        return answer

    async def QueryRooms(self, request: Any, context: Any) -> query_pb2.QueryRoomsResponse:  # noqa: N802
        self._answering()
        answer = query_pb2.QueryRoomsResponse()
        for room_id in request.room_ids or list(self.rooms):
            room = self.rooms.get(room_id)
            if room is not None:
                members = [key[1] for key, event in room.state.items() if event.membership == "join"]
                keys = [(key.type, key.state_key) for key in request.state_keys]
                answer.rooms.add(
                    room_id=room_id,
                    room_version=room.version.identifier,
                    participating=bool(members),
                    local_user_ids=members,
                    counts=query_pb2.Counts(joined=len(members), state=len(room.state)),
                    forward_extremities=len(room.extremities),
                    state=[
                        common_pb2.Event(event_id=event.event_id, pdu_json=event.pdu_json)
                        for key in keys
                        if (event := room.state.get(key)) is not None
                    ],
                )
        return answer

    async def QueryOutcome(  # noqa: N802
        self, request: Any, context: Any
    ) -> query_pb2.QueryOutcomeResponse:
        self._answering()
        if request.HasField("transaction_key"):
            known = self.by_key.get(_key(request.transaction_key))
            if known is not None:
                verdict = self.outcomes[known[0]]
                return query_pb2.QueryOutcomeResponse(known=True, verdict=verdict)
        outcome = self.outcomes.get(request.event_id)
        return query_pb2.QueryOutcomeResponse(known=outcome is not None, verdict=outcome)

    def _answering(self) -> None:
        self.queries += 1
        if self.away:
            raise unavailable()


def _is_recommended(event: Event, state: Mapping[StateKey, Event]) -> bool:
    server = policy_server_of(state.get(POLICY_KEY))
    if server is None or is_exempt(event) or is_signed(event, server):
        return True
    return not any(
        member.membership == "join" and server_name_of(user_id) == server.name
        for (kind, user_id), member in state.items()
        if kind == "m.room.member"
    )


def _key(key: common_pb2.TransactionKey) -> tuple[str, ...]:
    return (key.user_id, key.device_id, key.endpoint, key.room_id, key.txn_id)
