"""Which membership events a lazy-loading client has (client-server API, "Lazy-loading room members").

What an answer brought counts once the client comes back with that answer's token: an answer that was lost on its way
is not known to the client. Who comes with any other token, or after a restart, gets members once more. Memory
only, bounded in clients and members.
"""

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from syncapi.tokens import SyncToken

MAX_CLIENTS = 10_000
MAX_MEMBERS = 5_000
MAX_PENDING = 4
NOBODY: frozenset[str] = frozenset()


@dataclass(slots=True)
class SentMembers:
    """The members that one answer brings: room -> users; `whole`: rooms that the client gets as if new."""

    rooms: dict[str, AbstractSet[str]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Client:
    at: SyncToken | None = None
    rooms: dict[str, set[str]] = field(default_factory=dict)
    pending: list[tuple[SyncToken, SentMembers]] = field(default_factory=list)

    def received(self, sent: SentMembers) -> None:
        for room_id, users in sent.rooms.items():
            if room_id in sent.whole:
                self.rooms[room_id] = set(users)
            else:
                self.rooms.setdefault(room_id, set()).update(users)
        if sum(map(len, self.rooms.values())) > MAX_MEMBERS:
            self.rooms.clear()


class MemberMemory:
    """See the module. A client's key: user, device, filter."""

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        self._max_clients = max_clients
        self._clients: OrderedDict[object, _Client] = OrderedDict()

    def known(self, key: object, since: SyncToken | None) -> Mapping[str, AbstractSet[str]]:
        """Return what a client that comes with a token has: room -> users."""
        client = self._clients.get(key)
        if client is None or since is None:
            client = self._clients[key] = _Client(since)
            if len(self._clients) > self._max_clients:
                self._clients.popitem(last=False)
            return client.rooms
        self._clients.move_to_end(key)
        matching = [sent for token, sent in client.pending if token == since]
        if matching:
            for sent in matching:
                client.received(sent)
            client.at = since
            client.pending.clear()
        elif client.at != since:
            client.rooms.clear()
            client.pending.clear()
            client.at = since
        return client.rooms

    def sent(self, key: object, token: SyncToken, sent: SentMembers) -> None:
        """Note what an answer that leads to a token brings."""
        client = self._clients.get(key)
        if client is not None:
            client.pending.append((token, sent))
            del client.pending[:-MAX_PENDING]
