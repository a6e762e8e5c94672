"""No endpoint of the specification is missing silently: each is served, or listed as not yet there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientapi.service import create as create_clientapi
from servicekit.config import load_config
from servicekit.http import Router
from syncapi.service import create as create_syncapi
from tests.support.spec_endpoints import NOT_YET, SERVED, parse

# What clients call by another name: (method, path) -> the name of today.
OTHER_NAMES = {
    ("GET", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/x/x"): "/_matrix/client/v3/profile/x/x",
    ("PUT", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/x/x"): "/_matrix/client/v3/profile/x/x",
    ("DELETE", "/_matrix/client/unstable/uk.tcpip.msc4133/profile/x/x"): "/_matrix/client/v3/profile/x/x",
    (
        "POST",
        "/_matrix/client/unstable/org.matrix.msc4151/rooms/x/report",
    ): "/_matrix/client/v3/rooms/x/report",
    (
        "GET",
        "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    ): "/_matrix/client/v1/mutual_rooms",
    (
        "GET",
        "/_matrix/client/unstable/uk.timedout.msc4323/admin/lock/x",
    ): "/_matrix/client/v1/admin/lock/x",
    (
        "PUT",
        "/_matrix/client/unstable/uk.timedout.msc4323/admin/lock/x",
    ): "/_matrix/client/v1/admin/lock/x",
    (
        "GET",
        "/_matrix/client/unstable/uk.timedout.msc4323/admin/suspend/x",
    ): "/_matrix/client/v1/admin/suspend/x",
    (
        "PUT",
        "/_matrix/client/unstable/uk.timedout.msc4323/admin/suspend/x",
    ): "/_matrix/client/v1/admin/suspend/x",
    ("GET", "/_matrix/client/unstable/im.nheko.summary/summary/x"): "/_matrix/client/v1/room_summary/x",
    ("GET", "/_matrix/client/unstable/im.nheko.summary/rooms/x/summary"): "/_matrix/client/v1/room_summary/x",
    (
        "GET",
        "/_matrix/client/unstable/org.matrix.msc2432/rooms/x/aliases",
    ): "/_matrix/client/v3/rooms/x/aliases",
    (
        "GET",
        "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
    ): "/_matrix/client/v1/rtc/transports",
}


@pytest.fixture
async def router(tmp_path: Path) -> Router:
    """The client routes of all services, none of them started. In a loop, which gRPC's channels want."""
    config = load_config(None, {}, {"server_name": "arbor.test", "data_dir": str(tmp_path)})
    made = Router()
    for create in (create_clientapi, create_syncapi):
        create(config).routes(made)
    return made


def example(path: str) -> str:
    """The path with `x` for each parameter."""
    return re.sub(r"\{[^}]*\}", "x", path)


def not_yet() -> Iterator[tuple[str, str]]:
    """Every endpoint that is not there yet."""
    for lines in NOT_YET.values():
        yield from parse(lines)


async def test_what_is_said_to_be_served_is_served(router: Router) -> None:
    missing = [
        f"{method} {path}" for method, path in parse(SERVED) if router.match(method, example(path))[0] is None
    ]
    assert not missing


async def test_what_is_said_to_be_missing_is_missing(router: Router) -> None:
    present = [
        f"{method} {path}" for method, path in not_yet() if router.match(method, example(path))[0] is not None
    ]
    assert not present, "served by now: move them to SERVED"


def test_the_table_is_whole() -> None:
    served, missing = parse(SERVED), list(not_yet())
    assert len(set(served) | set(missing)) == len(served) + len(missing)
    # The specification v1.19 has 164 of them, /events and /invite counted once.
    assert len(served) + len(missing) == 164


@pytest.mark.parametrize("old", ["/_matrix/client/r0/", "/_matrix/client/api/v1/"])
async def test_old_prefixes_reach_the_same_handlers(router: Router, old: str) -> None:
    for method, path in parse(SERVED):
        if path.startswith("/_matrix/client/v3/"):
            today, params, _ = router.match(method, example(path))
            then, then_params, _ = router.match(method, example(path).replace("/_matrix/client/v3/", old))
            assert then is today, f"{method} {path}"
            assert then_params == params


@pytest.mark.parametrize(("method", "path"), OTHER_NAMES)
async def test_unstable_names_reach_the_same_handlers(router: Router, method: str, path: str) -> None:
    route, _, _ = router.match(method, path)
    assert route is not None
    assert route is router.match(method, OTHER_NAMES[method, path])[0]


async def test_every_get_answers_head(router: Router) -> None:
    for method, path in parse(SERVED):
        if method == "GET":
            assert router.match("HEAD", example(path))[0] is not None, path
