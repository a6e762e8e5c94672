"""What is remembered of a room, and for how long."""

from collections.abc import Callable, Iterable
from typing import Any

from federation.rooms import LatestState, Rooms
from matrixlib.events import StateKey
from matrixlib.policy_servers import POLICY_KEY
from tests.support.policy import POLICY_TYPE, policy_content
from tests.support.rooms import ALICE, BOB, Room

PS = "b.example"


class AskedRooms(Rooms):
    """Questions are answered out of one room, and counted."""

    def __init__(self, room: Room, local_names: list[str]) -> None:
        channel: Any = _Channel()
        super().__init__(channel, local_names)
        self.room = room
        self.asked = 0
        self.participating = True
        self.meanwhile: Callable[[], None] = lambda: None

    async def latest(
        self, room_id: str, keys: Iterable[StateKey] = (), *, all_state: bool = False, min_sequence: int = 0
    ) -> LatestState | None:
        self.asked += 1
        state = {key: self.room.state[key] for key in keys if key in self.room.state}
        self.meanwhile()
        return LatestState(self.room.version, tuple(self.room.heads), 1, state, 1, self.participating)

    async def servers(self, room_id: str) -> list[str]:
        return sorted(
            {
                user_id.partition(":")[2]
                for (kind, user_id), event in self.room.state.items()
                if kind == "m.room.member" and event.membership == "join"
            }
        )


class _Channel:
    """Nothing is called on it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def make_rooms(*names: str) -> tuple[AskedRooms, str]:
    room = Room("10")
    room.send(ALICE, POLICY_TYPE, policy_content(PS), state_key="")
    return AskedRooms(room, list(names) or ["a.example"]), room.create.room_id


async def test_a_policy_server_is_in_use_while_it_has_a_user_in_the_room() -> None:
    rooms, room_id = make_rooms()
    for membership, expected in (("invite", None), ("join", PS), ("leave", None)):
        rooms.room.member(BOB, membership, by=ALICE if membership == "invite" else None)
        rooms.forget(room_id)
        view = await rooms.view(room_id)
        assert view is not None
        assert (view.policy_server.name if view.policy_server else None) == expected
    assert POLICY_KEY in rooms.room.state


async def test_where_we_take_no_part_nobody_is_asked_to_sign() -> None:
    rooms, room_id = make_rooms()
    rooms.room.member(BOB, "join")
    rooms.participating = False
    view = await rooms.view(room_id)
    assert view is not None
    assert view.policy_server is None


async def test_a_view_is_kept_until_the_room_changes() -> None:
    rooms, room_id = make_rooms("a.example", "c.example")
    first = await rooms.view(room_id)
    assert first is not None
    assert await rooms.view(room_id) is first
    assert first.speaks_as == "a.example"
    assert rooms.asked == 1
    rooms.forget(room_id)
    assert await rooms.view(room_id) is not first
    assert rooms.asked == 2


async def test_a_view_that_grows_old_while_it_is_asked_for_is_not_kept() -> None:
    rooms, room_id = make_rooms()
    rooms.room.member(BOB, "join")

    def change() -> None:
        rooms.room.send(ALICE, POLICY_TYPE, {}, state_key="")
        rooms.forget(room_id)
        rooms.meanwhile = lambda: None

    rooms.meanwhile = change
    old = await rooms.view(room_id)
    assert old is not None
    assert old.policy_server is not None
    new = await rooms.view(room_id)
    assert new is not None
    assert new.policy_server is None
