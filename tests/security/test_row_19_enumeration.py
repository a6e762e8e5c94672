"""Row 19: nobody learns who or what exists here by asking for it.

Reports answer alike whatever they name; what only administrators may ask is refused before anything is looked
up; a login that fails tells nothing; a room that one is not in and a room that there is not look alike.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from servicekit.http import Router
from tests.support.clientapi_alone import Client, World, lone_clientapi


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with lone_clientapi(tmp_path) as running:
        yield running


async def answers(client: Client, requests: list[tuple[str, str, Any]]) -> list[tuple[int, Any]]:
    return [await client(method, path, body) for method, path, body in requests]


async def test_reports_answer_alike(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    hidden = (await alice.ok("POST", "/createRoom", {}))["room_id"]
    sent = await alice.ok("PUT", f"/rooms/{hidden}/send/m.room.message/1", {"body": "x"})
    body = {"reason": "r"}
    for there, not_there in (
        (f"/rooms/{hidden}/report", "/rooms/!nowhere:here.example/report"),
        (f"/rooms/{hidden}/report/{sent['event_id']}", f"/rooms/{hidden}/report/$nothing"),
        (f"/rooms/{hidden}/report/{sent['event_id']}", "/rooms/!nowhere:here.example/report/$nothing"),
        (f"/users/{alice.user_id}/report", "/users/@nobody:here.example/report"),
    ):
        first, second = await answers(bob, [("POST", there, body), ("POST", not_there, body)])
        assert first == second == (200, {})


async def test_what_administrators_may_ask_is_refused_before_it_is_looked_up(world: World) -> None:
    """Every route of administration, with what exists and what does not, to somebody who is none."""
    alice, bob = await world.user("alice"), await world.user("bob")
    room_id = (await alice.ok("POST", "/createRoom", {"room_alias_name": "there"}))["room_id"]
    existing = {"user_id": alice.user_id, "room_id": room_id, "room_id_or_alias": "#there:here.example"}
    existing |= {"device_id": alice.device_id}
    missing = {
        "user_id": "@nobody:here.example",
        "room_id": "!nowhere:here.example",
        "room_id_or_alias": "#nowhere:here.example",
    }
    router = Router()
    world.service.routes(router)
    asked = 0
    for route in router.routes:
        if "/admin/" not in route.pattern or route.pattern.endswith("/v1/register"):
            continue
        seen = []
        for values in (existing, missing, {"user_id": "nonsense", "room_id": "nonsense"}):
            path = route.pattern
            for name in route.param_names:
                path = path.replace(f"{{{name}}}", quote(values.get(name, "x"), safe=""))
            seen.append(await bob(route.method, path, None if route.method == "GET" else {}))
            asked += 1
        status, answer = seen[0]
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN"), route.pattern
        assert seen[1] == seen[0], route.pattern
        assert seen[2] == seen[0], route.pattern
    assert asked > 100


async def test_login_and_proofs_tell_nothing(world: World) -> None:
    alice = await world.user("alice")
    await world.user("bob")
    nobody = world.client()

    def login(user: str) -> dict[str, Any]:
        return {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user},
            "password": "wrong password",
        }

    names = ("alice", "nobody", "@alice:here.example", "@nobody:here.example", "@x:elsewhere.example")
    seen = await answers(nobody, [("POST", "/login", login(name)) for name in names])
    assert all(answer == seen[0] for answer in seen)
    assert seen[0][0] == 403
    # A proof in somebody else's name: the same whether there is such a one, whatever the password.
    proofs = await answers(
        alice,
        [
            ("DELETE", "/devices/X", {"auth": login(name)})
            for name in ("bob", "nobody", "@x:elsewhere.example")
        ],
    )
    assert all(answer == proofs[0] for answer in proofs)
    assert proofs[0][0] == 403


async def test_a_room_one_is_not_in_is_as_one_that_is_not_there(world: World) -> None:
    alice, bob = await world.user(), await world.user()
    hidden = (await alice.ok("POST", "/createRoom", {}))["room_id"]

    def asked(room_id: str) -> list[tuple[str, str, Any]]:
        room = f"/rooms/{room_id}"
        return [
            ("PUT", f"{room}/typing/{bob.user_id}", {"typing": True}),
            ("POST", f"{room}/receipt/m.read/$e", {}),
            ("POST", f"{room}/read_markers", {"m.read": "$e"}),
            ("GET", f"{room}/aliases", None),
            ("PUT", "/directory/room/%23a:here.example", {"room_id": room_id}),
            ("PUT", f"/user/{bob.user_id}/rooms/{room_id}/tags/u.a", {}),
            ("GET", f"/user/{bob.user_id}/rooms/{room_id}/account_data/m.tag", None),
        ]

    nowhere = "!" + "A" * 43
    assert await answers(bob, asked(hidden)) == await answers(bob, asked(nowhere))


async def test_people_are_found_only_by_those_who_could_meet_them(world: World) -> None:
    alice, bob = await world.user("alice"), await world.user("bob")
    for term in ("bob", bob.user_id, "@bob", "BOB"):
        answer = await alice.ok("POST", "/user_directory/search", {"search_term": term})
        assert answer == {"results": [], "limited": False}
