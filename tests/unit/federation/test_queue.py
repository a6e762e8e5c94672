"""One destination's queue: order, what stays after a failure, and falling behind."""

from federation.sender.queue import MAX_IN_MEMORY, MAX_PDUS, DestinationQueue
from federation.storage.outgoing import OutgoingEvent, Presence


def event(position: int) -> OutgoingEvent:
    return OutgoingEvent(position, "!r", f"${position}", b"{}")


def filled(count: int) -> DestinationQueue:
    queue = DestinationQueue("a.example", behind=False)
    for position in range(1, count + 1):
        queue.add_event(event(position))
    return queue


def test_events_go_in_order_and_leave_when_they_were_sent() -> None:
    queue = filled(70)
    first = queue.next_events()
    assert [item.position for item in first] == list(range(1, MAX_PDUS + 1))
    assert queue.next_events() == first, "what was not sent is next again"
    queue.sent(first[-1].position, [])
    assert [item.position for item in queue.next_events()] == list(range(51, 71))
    queue.sent(70, [])
    assert queue.is_empty


def test_too_many_events_leave_memory_and_are_not_forgotten() -> None:
    queue = filled(MAX_IN_MEMORY + 1)
    assert queue.behind
    assert not queue.events
    assert not queue.is_empty
    queue.add_event(event(MAX_IN_MEMORY + 2))
    assert not queue.events


def test_what_catching_up_has_read_is_not_taken_twice() -> None:
    queue = DestinationQueue("a.example", behind=True)
    queue.caught_up([event(5), event(6)], 8)
    for position in (6, 7, 8, 9):
        queue.add_event(event(position))
    assert [item.position for item in queue.events] == [5, 6, 9]


def test_edus_of_the_moment_are_replaced_and_dropped_by_a_failure() -> None:
    queue = DestinationQueue("a.example", behind=False)
    queue.add_ephemeral(("typing", "a"), {"n": 1})
    queue.add_ephemeral(("typing", "b"), {"n": 2})
    queue.add_ephemeral(("typing", "a"), {"n": 3})
    chosen = queue.next_ephemeral(10)
    assert list(chosen.values()) == [{"n": 2}, {"n": 3}]
    queue.add_ephemeral(("typing", "b"), {"n": 4})
    queue.sent(0, chosen.items())
    assert queue.ephemeral == {("typing", "b"): {"n": 4}}, "it came while the others were on their way"
    queue.failed()
    assert queue.is_empty


def test_a_failure_keeps_the_events() -> None:
    queue = filled(3)
    queue.failed()
    assert [item.position for item in queue.events] == [1, 2, 3]


def test_when_a_server_is_in_a_room() -> None:
    assert not Presence(5, None).covers(5), "the event by which it joined it has already"
    assert Presence(5, None).covers(6)
    assert Presence(5, 9).covers(9), "it is told that it left"
    assert not Presence(5, 9).covers(10)
