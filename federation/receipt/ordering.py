"""Events in an order in which each comes after its auth events. Pure."""

from collections.abc import Container, Mapping

from matrixlib.events import Event


def with_whole_auth(events: Mapping[str, Event], known: Container[str] = frozenset()) -> dict[str, Event]:
    """Return those events whose whole auth chain is among them or `known`, each after its auth events.

    Args:
        events: event id -> event; cycles and gaps leave out who depends on them.
        known: ids of events that are there already, with all that they need.
    """
    ordered: dict[str, Event] = {}
    complete: dict[str, bool] = {}  # False: being looked at, or it lacks something
    for root in events:
        stack = [(root, False)]
        while stack:
            event_id, returning = stack.pop()
            event = events.get(event_id)
            if event is None:
                continue
            if returning:
                if all(complete.get(link) or link in known for link in event.auth_links):
                    complete[event_id] = True
                    ordered[event_id] = event
            elif event_id not in complete:
                complete[event_id] = False
                stack.append((event_id, True))
                stack.extend((link, False) for link in event.auth_links if link not in complete)
    return ordered
