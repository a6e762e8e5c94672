"""Whatever is sent to whatever endpoint: the answer is an error of the specification, never a 500."""

import itertools
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from clientapi.storage import administration
from servicekit.http import Router
from tests.support.clientapi_alone import World, lone_clientapi

ODD: list[Any] = [None, 0, -1, 2**53, 1.5, True, "", "x", "x" * 3000, "\0", [], [1], [None], {}, {"a": 1}]
KEYS = """
    user_id reason type content state_key name topic invite invite_3pid visibility preset creation_content
    initial_state room_alias_name room_version power_level_content_override is_direct username password auth
    device_id initial_device_display_name refresh_token inhibit_login identifier user new_password devices
    display_name displayname avatar_url room_id alias alt_aliases membership users events redacts new_version
    additional_creators limit since filter typing timeout thread_id m.fully_read m.read actions conditions
    deactivated locked suspended token uses_allowed expiry_time length new_password score
    block purge message room_name suspend devices purge_up_to_ts purge_up_to_event_id delete_local_events
    pattern enabled app_id pushkey kind data lang order tags nonce mac admin room presence account_data
""".split()  # noqa: SIM905 - a list of words reads better so


@pytest.mark.timeout(300)
async def test_odd_bodies_and_paths_are_refused_cleanly(tmp_path: Path, database_url: str) -> None:
    async with lone_clientapi(tmp_path, database__url=database_url) as world:
        await send_odd_things(world)


async def send_odd_things(world: World) -> None:
    alice = await world.user("alice")
    # An administrator, so that what the admin API is sent is looked at.
    await world.service._db.write(administration.store_flag, alice.user_id, "admin", True)
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    router = Router()
    world.service.routes(router)
    fine = {
        "room_id": room_id,
        "room_id_or_alias": room_id,
        "user_id": alice.user_id,
        "room_alias": "#a:here.example",
        "event_type": "m.room.member",
        "state_key": alice.user_id,
        "kind": "override",
    }
    ended = {"/logout", "/logout/all", "/account/deactivate", "/leave"}
    bad: list[tuple[str, str, Any, int]] = []
    bodies = itertools.cycle(ODD)
    for route in router.routes:
        if any(route.pattern.endswith(end) for end in ended):
            continue
        deletes = route.method == "DELETE" and route.pattern.endswith("/rooms/{room_id}")
        for odd_path in (True,) if deletes else (False, True):
            path = route.pattern
            for name in route.param_names:
                value = "\U0001f600 %/\0" if odd_path else fine.get(name, "x")
                path = path.replace(f"{{{name}}}", quote(value, safe="")).replace(
                    f"{{{name}?}}", quote(value, safe="")
                )
            tried: list[Any] = [None] if route.method in ("GET", "DELETE") else [{}, *_bodies(bodies)]
            for body in tried:
                status, answer = await alice(route.method, path, body)
                if status >= 500 or (status >= 400 and "errcode" not in answer and "flows" not in answer):
                    bad.append((route.method, path, body, status))
    assert bad == []
    await alice.ok("PUT", f"/rooms/{room_id}/send/m.room.message/after", {"body": "x"})


def _bodies(values: Any) -> list[dict[str, Any]]:
    """Objects with one key each and the next odd value; over the routes each key meets each value."""
    return [{key: next(values)} for key in KEYS] + [{key: next(values) for key in KEYS} for _ in range(3)]
