"""Where messages stand on OUTPUT: remembered once they are published, stored with a later commit.

What a crash leaves unstored the relay finds in the stream.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from servicekit.log.outbox import Published

MAX_POSITIONS = 100_000

Placed = tuple[int, int, int]
"""(sequence, partition, output_no)."""


class Places:
    """See the module."""

    def __init__(self) -> None:
        self.output_last = 0
        """The greatest OUTPUT sequence that is known."""
        self.unstored: list[Placed] = []
        # partition -> the last message of which we know that it is published
        self._noted: dict[int, Published] = {}
        self._of_rooms: OrderedDict[str, int] = OrderedDict()
        self._sequences: OrderedDict[tuple[int, int], int] = OrderedDict()

    @property
    def sequences(self) -> Mapping[tuple[int, int], int]:
        """(partition, output_no) -> OUTPUT sequence, of messages that are remembered."""
        return self._sequences

    def position_of(self, room_id: str) -> int | None:
        """The OUTPUT sequence of a room's last message, if it is remembered."""
        return self._of_rooms.get(room_id)

    def note(self, published: Iterable[Published]) -> None:
        """Remember messages that are published."""
        for item in published:
            partition, output_no, sequence = item
            before = self._noted.get(partition, item)
            # What is gone from the log leaves the relay where it was.
            self._noted[partition] = item if sequence else before._replace(output_no=output_no)
            if sequence:
                self.unstored.append((sequence, partition, output_no))
                self._sequences[partition, output_no] = sequence
                self.output_last = max(self.output_last, sequence)
        while len(self._sequences) > MAX_POSITIONS:
            self._sequences.popitem(last=False)

    def note_rooms(self, rooms: Mapping[str, tuple[int, int]]) -> None:
        """Remember rooms' last messages, room id -> (partition, output_no); those are published."""
        for room_id, place in rooms.items():
            sequence = self._sequences.get(place)
            if sequence:
                self._of_rooms[room_id] = sequence
                self._of_rooms.move_to_end(room_id)
        while len(self._of_rooms) > MAX_POSITIONS:
            self._of_rooms.popitem(last=False)

    def forget_rooms(self) -> None:
        """Forget rooms' last messages: others may tell of them from now on."""
        self._of_rooms.clear()

    def take_unstored(self) -> list[Placed]:
        """Take what a transaction is about to store."""
        taken, self.unstored = self.unstored, []
        return taken

    def give_back(self, taken: list[Placed]) -> None:
        """The transaction was not committed."""
        self.unstored[:0] = taken

    def deletable(self, published: Iterable[Published], held: Collection[int]) -> list[Published]:
        """How far the outbox may be deleted, of what the relay has published: only what stands on OUTPUT at a place
        that is stored, too.
        """
        return [
            min(item, self._noted[item.partition], key=lambda published: published.output_no)
            for item in published
            if item.partition in held and item.partition in self._noted
        ]
