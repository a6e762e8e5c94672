"""A space as another server may see it."""

from pathlib import Path
from typing import Any

from tests.support.evil_peer import EvilPeer
from tests.support.federation_alone import FederationAlone
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa


async def test_a_space_shows_what_the_asker_could_join(tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, FederationAlone(tmp_path, ca) as us:
        owner = us.user("owner")

        def room(content: dict[str, Any] | None = None, rule: str = "public", **rules: Any) -> Room:
            # Version 12: each room has an id of its own.
            made = Room("12", creator=owner, content={**(content or {}), "n": len(us.rooms.of)})
            made.send(owner, "m.room.join_rules", {"join_rule": rule, **rules}, state_key="")
            us.rooms.of[made.create.room_id] = made
            return made

        space = room({"type": "m.space"})
        lobby = room().with_members(f"@eve:{peer.server_name}")
        allow = [{"type": "m.room_membership", "room_id": lobby.create.room_id}]
        children = {
            "public": room(),
            "private": room(rule="invite"),
            "restricted": room(rule="restricted", allow=allow),
            "shut": room(rule="restricted", allow=[]),
        }
        for name, child in children.items():
            child.send(owner, "m.room.name", {"name": name}, state_key="")
            content = {"via": [us.server_name], "suggested": name == "public", "order": name}
            space.send(owner, "m.space.child", content, state_key=child.create.room_id)
        space.send(owner, "m.space.child", {"via": ["x.example"]}, state_key="!unknown:x.example")
        path = f"/_matrix/federation/v1/hierarchy/{space.create.room_id}"
        status, body = await peer.ask("GET", us.base_url, path, us.server_name)
        assert status == 200, body
        assert body["room"]["room_type"] == "m.space"
        assert len(body["room"]["children_state"]) == 5
        assert [child["name"] for child in body["children"]] == ["public", "restricted"]
        assert body["children"][1]["allowed_room_ids"] == [lobby.create.room_id]
        shut = {children[name].create.room_id for name in ("private", "shut")}
        assert set(body["inaccessible_children"]) == shut
        status, body = await peer.ask("GET", us.base_url, f"{path}?suggested_only=true", us.server_name)
        assert [child["name"] for child in body["children"]] == ["public"]
        for closed in (children["private"].create.room_id, "!unknown:x.example"):
            status, body = await peer.ask(
                "GET", us.base_url, f"/_matrix/federation/v1/hierarchy/{closed}", us.server_name
            )
            assert (status, body["errcode"]) == (404, "M_NOT_FOUND")
