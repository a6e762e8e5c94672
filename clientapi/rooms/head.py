"""A lane's view of its room: on what the next event is built, and the state that decides what is allowed.

The view is provisional: it includes events that are written and not yet judged. The RoomServer compares
(rule 8 of docs/architecture.md) and answers STALE where the view was wrong.
"""

from collections.abc import Iterable, Mapping

from arbor.log.v1 import input_pb2
from clientapi.rooms.queries import Latest
from matrixlib.event_auth import Verdict
from matrixlib.events import Event, StateKey, parse_event
from matrixlib.policy_servers import POLICY_KEY, policy_server_of
from matrixlib.room_versions import RoomVersion

MAX_PREV_EVENTS = 20
MAX_KNOWN_KEYS = 20_000


class Head:
    """See the module.

    Attributes:
        room_version: of the room.
        extremities: event ids that the next event follows.
        depth: the greatest among them.
        output_sequence: the OUTPUT sequence that the view was taken at.
        provisional: events were built on it since.
        participating: a local user is joined, as far as is known.
        partial: the room's members are not all known yet, as far as is known.
    """

    __slots__ = (
        "_state",
        "_verdicts",
        "depth",
        "extremities",
        "output_sequence",
        "partial",
        "participating",
        "provisional",
        "room_version",
    )

    def __init__(
        self, room_version: RoomVersion, extremities: tuple[str, ...], depth: int, output_sequence: int
    ) -> None:
        self.room_version = room_version
        self.extremities = extremities[:MAX_PREV_EVENTS]
        self.depth = depth
        self.output_sequence = output_sequence
        self.provisional = False
        self.participating = True
        self.partial = False
        # None: known to be absent.
        self._state: dict[StateKey, Event | None] = {}
        # What the rules said of a (type, sender) of message events, which depends on nothing else than this
        # state.
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    @classmethod
    def from_latest(cls, latest: Latest, asked: Iterable[StateKey]) -> "Head":
        """Return the view that an answer of the RoomServer gives."""
        head = cls(latest.room_version, latest.forward_extremities, latest.depth, latest.output_sequence)
        head.participating = latest.participating
        head.partial = latest.partial
        head.learn(latest.state, asked)
        return head

    @classmethod
    def from_stale(
        cls, built: Event, carried: Mapping[StateKey, Event], stale: input_pb2.StaleHeads
    ) -> "Head":
        """Return the view that a STALE verdict gives.

        Args:
            built: the event that was refused as stale.
            carried: its auth events by key: still true where the verdict does not say otherwise.
            stale: of the verdict.
        """
        version = built.room_version
        head = cls(version, tuple(stale.forward_extremities), stale.depth, stale.output_sequence)
        head._state.update(carried)
        head.merge_stale(version, stale)
        return head

    def merge_stale(self, version: RoomVersion, stale: input_pb2.StaleHeads) -> None:
        """Take the changed auth state of a STALE verdict over, with which comes the room's policy if it has one."""
        self._state[POLICY_KEY] = None
        for item in stale.changed_auth_state:
            event = parse_event(item.pdu_json, version, event_id=item.event_id, verify_size=False)
            self._state[event.key] = event
        for key in stale.removed_auth_state:
            self._state[(key.type, key.state_key)] = None
        self._verdicts.clear()

    def learn(self, state: Mapping[StateKey, Event], asked: Iterable[StateKey]) -> None:
        """Add state entries that were asked for; what is not among the answers is absent."""
        if len(self._state) > MAX_KNOWN_KEYS:
            self._state.clear()
        for key in asked:
            self._state[key] = state.get(key)
        self._verdicts.clear()

    @property
    def policy(self) -> Event | None:
        """The room's `m.room.policy`, if it names a policy server. Every head is to know of it."""
        policy = self._state.get(POLICY_KEY)
        return policy if policy_server_of(policy) is not None else None

    def missing(self, keys: Iterable[StateKey]) -> list[StateKey]:
        """Return those keys of which nothing is known."""
        known = self._state
        return [key for key in keys if key not in known]

    def select(self, keys: Iterable[StateKey]) -> dict[StateKey, Event]:
        """Return the entries that exist under keys."""
        state = self._state
        return {key: event for key in keys if (event := state.get(key)) is not None}

    def verdict_on(self, event_type: str, sender: str) -> Verdict | None:
        """Return what the rules said before of a message event of this type and sender."""
        return self._verdicts.get((event_type, sender))

    def note_verdict(self, event_type: str, sender: str, verdict: Verdict) -> None:
        """Remember what the rules said of a message event."""
        self._verdicts[(event_type, sender)] = verdict

    def advance(self, event: Event) -> None:
        """An event was built on this view."""
        self.extremities = (event.event_id,)
        self.depth = event.depth
        self.provisional = True
        if event.state_key is not None:
            self._state[(event.type, event.state_key)] = event
            self._verdicts.clear()
        policy = self._state.get(POLICY_KEY)
        if policy is not None and event.redacts == policy.event_id:
            self._state[POLICY_KEY] = None
