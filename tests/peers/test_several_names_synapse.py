"""An Arbor of two names and a real Synapse: users of either name are to Synapse what their names say."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from matrixlib.identifiers import server_name_of
from tests.support.arbor_server import ArborServer
from tests.support.federation import FederatedSynapse, federated_arbor, until
from tests.support.matrix_client import MatrixClient, segment
from tests.support.ports import free_port
from tests.support.synapse_pair import Watch, agree, sees
from tests.support.synapse_server import ensure_installed
from tests.support.tls_ca import TestCa

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, slots=True)
class Servers:
    """An Arbor called `names`, and a Synapse."""

    arbor: ArborServer
    synapse: FederatedSynapse
    names: tuple[str, str]

    async def people(
        self, session: aiohttp.ClientSession, unique: Any
    ) -> tuple[MatrixClient, MatrixClient, MatrixClient]:
        """Alice of the first name, Dora of the second, Sam of Synapse."""
        alice = await self.arbor.register(session, unique("alice"))
        dora_id = f"@{unique('dora')}:{self.names[1]}"
        status, output = await self.arbor.command("user", "create", dora_id, "--password", "a long password")
        assert status == 0, output
        dora = await alice.login(dora_id, "a long password")
        return alice, dora, await self.synapse.register(session, unique("sam"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    ensure_installed()
    folder = tmp_path_factory.mktemp("names")
    ca = TestCa(folder / "ca")
    ports = free_port(), free_port()
    names = f"localhost:{ports[0]}", f"localhost:{ports[1]}"
    made = Servers(
        federated_arbor(folder / "arbor", ca, port=ports[0], more_ports=ports[1:]),
        FederatedSynapse(folder / "synapse", ca),
        names,
    )

    async def start() -> None:
        await asyncio.gather(made.arbor.start(), made.synapse.start())

    async def stop() -> None:
        await asyncio.gather(made.arbor.stop(), made.synapse.stop())

    asyncio.run(start())
    try:
        yield made
    finally:
        asyncio.run(stop())


async def test_both_names_join_invite_and_talk(
    servers: Servers, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, dora, sam = await servers.people(session, unique)
    assert (server_name_of(alice.user_id), server_name_of(dora.user_id)) == servers.names
    home = servers.synapse.server_name
    # The second name is alone in a room of Synapse's, then invites the first.
    room_id = await sam.create_room(preset="private_chat", room_version="10")
    for inviter, invited in ((sam, dora), (dora, alice)):
        await inviter.invite(room_id, invited.user_id)

        async def is_invited(invited: MatrixClient = invited) -> bool:
            return room_id in (await invited.sync())["rooms"].get("invite", {})

        await until(is_invited, f"{invited.user_id} is invited")
        await invited.join(room_id)
    for speaker in (alice, dora, sam):
        event_id = await speaker.send(room_id, f"from {speaker.user_id}")
        for listener in (alice, dora, sam):
            await sees(listener, room_id, event_id)
    await agree(dora, sam, room_id)
    await agree(alice, sam, room_id)
    # And a room of the second name's, which Synapse finds by its alias.
    name = unique("room")
    ours = await dora.create_room(preset="public_chat", room_alias_name=name)
    alias = f"#{name}:{servers.names[1]}"
    assert (await sam.get(f"/directory/room/{segment(alias)}"))["room_id"] == ours
    await sam.post(f"/join/{segment(alias)}")
    await sees(dora, ours, await sam.send(ours, "found you"))
    # Who joins by the first name is one more server for Synapse.
    public = await sam.create_room(preset="public_chat", room_version="11")
    for joiner in (alice, dora):
        await joiner.post(f"/join/{segment(public)}?via={home}")
    await agree(alice, sam, public)
    members = (await sam.get(f"/rooms/{public}/joined_members"))["joined"]
    assert set(members) == {alice.user_id, dora.user_id, sam.user_id}


async def test_what_is_of_the_moment_comes_from_the_name_of_its_user(
    servers: Servers, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, dora, sam = await servers.people(session, unique)
    room_id = await sam.create_room(preset="public_chat")
    for joiner in (alice, dora):
        await joiner.post(f"/join/{segment(room_id)}?via={servers.synapse.server_name}")
    said = await sam.send(room_id, "read this")
    for reader in (alice, dora):
        await sees(reader, room_id, said)
        watch = Watch(sam, room_id, (await sam.sync())["next_batch"])
        await reader.put(f"/rooms/{room_id}/typing/{reader.user_id}", {"typing": True, "timeout": 20000})
        await watch.until(
            lambda kind, content, u=reader.user_id: (  # type: ignore[misc]
                kind == "m.typing" and u in content["user_ids"]
            )
        )
        await reader.post(f"/rooms/{room_id}/receipt/m.read/{said}")
        await watch.until(
            lambda kind, content, u=reader.user_id: (  # type: ignore[misc]
                kind == "m.receipt" and u in content.get(said, {}).get("m.read", {})
            )
        )
        name = {"displayname": f"called {reader.user_id}"}
        await reader.put(f"/profile/{reader.user_id}/displayname", name)
        assert await sam.get(f"/profile/{reader.user_id}/displayname") == name


async def test_what_the_other_server_asks_goes_to_either_name(
    servers: Servers, session: aiohttp.ClientSession, unique: Any
) -> None:
    alice, dora, sam = await servers.people(session, unique)
    for owner, home in ((alice, servers.names[0]), (dora, servers.names[1])):
        room_id = await owner.create_room(preset="public_chat", room_version="10")
        said = [await owner.send(room_id, f"before {number}") for number in range(3)]
        await sam.post(f"/join/{segment(room_id)}?server_name={home}")
        # History that was there before comes from the server of that name.
        for event_id in said:
            await sees(sam, room_id, event_id)
        await owner.post(f"/rooms/{room_id}/kick", {"user_id": sam.user_id})

        async def out(room_id: str = room_id) -> bool:
            return room_id not in (await sam.get("/joined_rooms"))["joined_rooms"]

        await until(out, "the kick arrives")
