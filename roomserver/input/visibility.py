"""What decides who may see an event (architecture, §6): history visibility and, outside of the timeline,
members.
"""

from collections.abc import Mapping

from arbor.log.v1.common_pb2 import Membership
from arbor.log.v1.output_pb2 import Visibility
from matrixlib.events import Event, StateKey
from roomserver.input.auth import VISIBILITY_KEY

VALUES = ("world_readable", "shared", "invited", "joined")


def history_visibility(event: Event | None) -> str:
    """The value of a history visibility event; without one, or with another value, it is `shared`."""
    value = event.content.get("history_visibility") if event is not None else None
    return value if isinstance(value, str) and value in VALUES else "shared"


def visibility_of(
    event: Event, state_before: Mapping[StateKey, Event], local_members: list[Membership] | None = None
) -> Visibility:
    """Annotate an event. `local_members` only for placements other than TIMELINE."""
    before = history_visibility(state_before.get(VISIBILITY_KEY))
    made = Visibility(history_visibility=before)
    if event.type == "m.room.history_visibility" and event.state_key == "":
        after = history_visibility(event)
        if after != before:
            made.history_visibility_after = after
    if local_members:
        made.local_members.extend(local_members)
    return made
