"""Everything held in memory about committed rows: rooms, events, snapshots, state keys, reserved numbers.

Used inside of units of work that write, one after the other. All of it can be dropped at any time.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from matrixlib.events import Event, StateKey
from roomserver.rooms import RoomCache
from roomserver.storage.ids import Allocator
from roomserver.storage.snapshots import Node

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_EVENTS = 20_000
MAX_KEYS = 400_000
MAX_NODES = 4_000
MAX_STATES = 24
MAX_RESOLVED = 2_000
MAX_ALLOWED = 10_000


class Lru(Generic[K, V]):
    """A dict that forgets what was not used for longest."""

    __slots__ = ("_items", "_size")

    def __init__(self, size: int) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._size = size

    def get(self, key: K) -> V | None:
        """Return a value, or None."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)

    def pop(self, key: K) -> None:
        """Forget a value."""
        self._items.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()


AllowedKey = tuple[int, str, str, tuple[str, ...]]
"""(snapshot, type, sender, auth links)."""


class Allowed(NamedTuple):
    """What judging found for a message like the next ones: the same state always says the same."""

    auth_nids: tuple[int, ...]
    state: dict[StateKey, Event]


class Memory:
    """See the module."""

    def __init__(self) -> None:
        self.rooms = RoomCache()
        self.ids = Allocator()
        self.events: Lru[int, Event] = Lru(MAX_EVENTS)
        self.nodes: Lru[int, Node] = Lru(MAX_NODES)
        self.states: Lru[int, dict[int, int]] = Lru(MAX_STATES)
        self.resolved: Lru[frozenset[int], int] = Lru(MAX_RESOLVED)
        self.allowed: Lru[AllowedKey, Allowed] = Lru(MAX_ALLOWED)
        self.key_ids: dict[StateKey, int] = {}
        self.keys: dict[int, StateKey] = {}

    def add_keys(self, keys: dict[StateKey, int]) -> None:
        """Remember the numbers of state keys."""
        if len(self.key_ids) + len(keys) > MAX_KEYS:
            self.key_ids.clear()
            self.keys.clear()
        self.key_ids.update(keys)
        self.keys.update((number, key) for key, number in keys.items())

    def clear(self) -> None:
        """Forget everything: after a failed commit nothing is certain."""
        self.rooms.clear()
        self.ids = Allocator()
        self.events.clear()
        self.nodes.clear()
        self.states.clear()
        self.resolved.clear()
        self.allowed.clear()
        self.key_ids.clear()
        self.keys.clear()
