"""`arbor federation status` and `joins`: tables for people."""

from arbor.federation.v1 import federation_pb2 as pb
from servicekit.cli.federation import table, table_of_joins

NOW = 10_000_000


def test_each_destination_is_a_line_with_what_matters() -> None:
    lines = table(
        [
            pb.Destination(
                server_name="a.example",
                state=pb.DESTINATION_STATE_BACKING_OFF,
                pending_rooms=3,
                pending_edus=2,
                oldest_pending_ms=NOW - 7_200_000,
                failures=4,
                last_error="no answer",
                last_success_ms=NOW - 500_000,
                next_try_ms=NOW + 40_000,
            ),
            pb.Destination(server_name="long-name.example", state=pb.DESTINATION_STATE_IDLE),
        ],
        NOW,
    )
    assert lines[1].split("  ")[0] == "a.example"
    assert [cell.strip() for cell in lines[1].split("  ") if cell.strip()] == [
        "a.example",
        "waiting",
        "3",
        "2",
        "2 h ago",
        "4",
        "in 40 s",
        "8 min ago",
        "no answer",
    ]
    assert lines[2].startswith("long-name.example  idle")
    assert lines[2].endswith("now       -")


def test_a_join_that_is_being_completed_says_when_it_is_tried_again() -> None:
    lines = table_of_joins(
        [
            pb.Join(
                user_id="@a:here",
                room_id="!r:there",
                resident="there",
                state=pb.JOIN_STATE_COMPLETING,
                created_ms=NOW - 30_000,
                attempts=3,
                next_try_ms=NOW + 4_000,
                error="there: no answer",
            ),
            pb.Join(user_id="@b:here", room_id="!s:there", resident="there", state=pb.JOIN_STATE_DONE),
        ],
        NOW,
    )
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells[0] == ["user", "room", "through", "state", "begun", "tries", "next try", "error"]
    assert cells[1] == [
        "@a:here",
        "!r:there",
        "there",
        "completing",
        "30 s ago",
        "3",
        "in 4 s",
        "there: no answer",
    ]
    assert cells[2] == ["@b:here", "!s:there", "there", "done", "-", "-", "-"]
