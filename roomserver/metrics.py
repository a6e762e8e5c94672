"""What the RoomServer counts and times."""

from collections.abc import Mapping

from servicekit import metrics

batch_entries = metrics.histogram(
    "roomserver_batch_entries", "INPUT entries judged in one transaction", buckets=metrics.SIZE_BUCKETS
)
batch_seconds = metrics.histogram("roomserver_batch_seconds", "Time of one transaction of judging")
verdicts = metrics.counter("roomserver_verdicts", "Verdicts by code", ["code"])
soft_failed = metrics.counter("roomserver_soft_failed_events", "Events that were soft-failed")
rejected = metrics.counter("roomserver_rejected_events", "Events of other servers that were rejected")
resolutions = metrics.histogram("roomserver_resolution_seconds", "Time of one state resolution")
resolution_conflicts = metrics.histogram(
    "roomserver_resolution_conflicts", "Conflicted keys of one state resolution", buckets=metrics.SIZE_BUCKETS
)
heads = metrics.histogram(
    "roomserver_forward_extremities",
    "Forward extremities of a room after a batch that changed it",
    ["participation"],
    buckets=(1, 2, 3, 5, 10, 20, 50, 100),
)
room_heads = metrics.gauge(
    "roomserver_room_forward_extremities",
    "Forward extremities of the rooms that have most of them, as last counted",
    ["room_id"],
)
merges = metrics.counter("roomserver_merge_events", "Hidden events made to join heads")
state_resets = metrics.counter(
    "roomserver_state_removed_by_resolution",
    "Entries of current state that a resolution removed and nobody replaced",
)
dead_letters = metrics.counter("roomserver_dead_letters", "INPUT entries that could not be applied")
fenced = metrics.counter(
    "roomserver_fenced_batches", "Batches rolled back because another owner had taken over"
)
erased = metrics.counter("roomserver_log_erased", "Messages erased from the log", ["stream"])
lag = metrics.gauge("roomserver_input_lag", "INPUT messages not judged yet")
outbox = metrics.gauge("roomserver_outbox_messages", "OUTPUT messages committed and not known as published")
hot_rooms = metrics.gauge("roomserver_hot_rooms", "Rooms held in memory")
table_rows = metrics.gauge("roomserver_table_rows", "Rows of a table, as last counted", ["table"])
partitions_owned = metrics.gauge("roomserver_partitions_owned", "Partitions that this process owns")


def note_sizes(rows: Mapping[str, int], heads: Mapping[str, int]) -> None:
    """Note tables' rows, and the forward extremities of the rooms that have most."""
    for table, count in rows.items():
        table_rows.labels(table).set(count)
    room_heads.clear()
    for room_id, count in heads.items():
        room_heads.labels(room_id).set(count)
