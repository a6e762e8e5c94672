"""Redacted forms: at once when a redaction is accepted, and on arrival of an event whose redaction came first."""
from matrixlib.events import Event, StateKey
from roomserver.input.batch import Batch
from roomserver.rooms import RoomWork
from roomserver.storage.events import EventRow


def apply_redaction(
    batch: Batch, work: RoomWork, event: Event, row: EventRow, state_before: dict[StateKey, Event]
) -> None:
    """TODO"""
