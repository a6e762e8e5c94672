"""Row 34: which keys are believed, for what and for how long."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from federation.clock import now_ms
from federation.http.authentication import MAX_STRANGERS
from federation.keys.remote import MAX_VALIDITY_MS, KeyObjectError, is_usable, read_key_object
from federation.storage.keys import KeyRow
from matrixlib.events import Event
from matrixlib.hashes import encode_base64
from matrixlib.signing import (
    SigningKey,
    decode_signing_key,
    sign_event,
    sign_json,
    verify_key_from_base64,
    verify_signed_json,
)
from servicekit.config import load_config
from servicekit.keys import load_old_keys, load_signing_key, rotate_signing_key
from tests.support.evil_peer import Answer, EvilPeer
from tests.support.federation import until
from tests.support.federation_alone import FederationAlone
from tests.support.ports import free_port
from tests.support.rooms import Room
from tests.support.tls_ca import TestCa

NOW = 1_800_000_000_000
NAME = "a.example"
KEY = SigningKey("ed25519:one", b"1" * 32)
OTHER = SigningKey("ed25519:two", b"2" * 32)


def key_object(*signers: SigningKey, **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "server_name": NAME,
        "verify_keys": {KEY.key_id: {"key": KEY.verify_key.base64}},
        "old_verify_keys": {},
        "valid_until_ts": NOW + 1000,
        **changes,
    }
    for signer in signers or (KEY,):
        value = sign_json(value, NAME, signer)
    return value


def test_a_right_key_object_gives_its_keys_for_at_most_a_week() -> None:
    assert read_key_object(key_object(), NAME, NOW) == [
        KeyRow(KEY.key_id, KEY.verify_key.public_bytes, NOW + 1000, None)
    ]
    (row,) = read_key_object(key_object(valid_until_ts=2**62), NAME, NOW)
    assert row.valid_until_ms == NOW + MAX_VALIDITY_MS


@pytest.mark.parametrize(
    "value",
    [
        key_object(server_name="b.example"),
        key_object(valid_until_ts="soon"),
        key_object(OTHER),
        key_object(verify_keys={}),
        {**key_object(), "valid_until_ts": NOW + 2000},
        {**key_object(), "signatures": {}},
        # Signed with two of its keys, and one signature is wrong: then it is wrong.
        {
            **key_object(verify_keys={key.key_id: {"key": key.verify_key.base64} for key in (KEY, OTHER)}),
            "signatures": {NAME: {**key_object()["signatures"][NAME], OTHER.key_id: "A" * 86}},
        },
        [],
        None,
    ],
)
def test_others_are_not_believed(value: Any) -> None:
    with pytest.raises(KeyObjectError):
        read_key_object(value, NAME, NOW)


def test_weak_and_malformed_keys_are_skipped() -> None:
    keys = {
        KEY.key_id: {"key": KEY.verify_key.base64},
        "ed25519:zero": {"key": encode_base64(bytes(32))},
        "ed25519:small": {"key": encode_base64(bytes([1]) + bytes(31))},
        "ed25519:short": {"key": "AAAA"},
        "ed25519:null": {"key": None},
        "ed448:x": {"key": KEY.verify_key.base64},
        "ed25519:": {"key": KEY.verify_key.base64},
        "ed25519:x y": {"key": KEY.verify_key.base64},
    }
    rows = read_key_object(key_object(verify_keys=keys), NAME, NOW)
    assert [row.key_id for row in rows] == [KEY.key_id]


def test_old_keys_are_good_for_the_past_only() -> None:
    old = {OTHER.key_id: {"key": OTHER.verify_key.base64, "expired_ts": NOW - 5000}}
    rows = read_key_object(key_object(old_verify_keys=old), NAME, NOW)
    row = next(row for row in rows if row.key_id == OTHER.key_id)
    for enforce in (True, False):
        assert is_usable(row, NOW - 5000, enforce_validity=enforce)
        assert not is_usable(row, NOW - 4999, enforce_validity=enforce)


def test_validity_counts_where_the_room_version_says_so() -> None:
    row = KeyRow(KEY.key_id, KEY.verify_key.public_bytes, NOW, None)
    assert is_usable(row, NOW, enforce_validity=True)
    assert not is_usable(row, NOW + 1, enforce_validity=True)
    assert is_usable(row, NOW + 1, enforce_validity=False)


def test_the_key_file_is_made_for_its_owner_and_rotated(tmp_path: Path) -> None:
    config = load_config(None, {}, {"server_name": NAME, "data_dir": str(tmp_path)})
    first = load_signing_key(config, NAME)
    assert load_signing_key(config, NAME).seed == first.seed
    assert stat.S_IMODE(config.signing_key_path.stat().st_mode) == 0o600
    other = load_config(None, {}, {"server_name": NAME, "data_dir": str(tmp_path / "other")})
    assert load_signing_key(other, NAME).seed != first.seed
    second = rotate_signing_key(config, NAME, NOW)
    assert second.key_id != first.key_id
    assert decode_signing_key(config.signing_key_path.read_text()).seed == second.seed
    (old,) = load_old_keys(config, NAME)
    assert (old.verify_key, old.expired_ms) == (first.verify_key, NOW)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[EvilPeer, EvilPeer, FederationAlone]]:
    ca = TestCa(tmp_path / "ca")
    async with EvilPeer(ca) as peer, EvilPeer(ca) as notary:
        settings: dict[str, Any] = {"federation.key_servers": [notary.server_name]}
        async with FederationAlone(tmp_path, ca, **settings) as us:
            yield peer, notary, us


async def test_keys_are_fetched_once_and_kept(world: tuple[EvilPeer, EvilPeer, FederationAlone]) -> None:
    peer, _, us = world
    for _ in range(3):
        keys = await us.parts.ring.verify_keys(
            peer.server_name, [peer.key.key_id], NOW, enforce_validity=False
        )
        assert keys == {peer.key.key_id: peer.key.verify_key}
    assert len(peer.asked("server")) == 1


async def test_an_unknown_key_is_not_asked_for_again_and_again(
    world: tuple[EvilPeer, EvilPeer, FederationAlone],
) -> None:
    peer, _, us = world
    for _ in range(5):
        keys = await us.parts.ring.verify_keys(
            peer.server_name, ["ed25519:unknown"], NOW, enforce_validity=True
        )
        assert keys == {}
    assert len(peer.asked("server")) == 1


async def test_keys_at_thousands_of_times_leave_the_loop_its_turns(
    world: tuple[EvilPeer, EvilPeer, FederationAlone],
) -> None:
    peer, _, us = world
    until_ms = now_ms() + 3_600_000
    peer.answer("server", lambda _: peer.key_object(valid_until_ts=until_ms))
    times = range(until_ms - 2500, until_ms + 2500)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        # What is fetched is fetched first, so that the turns counted are those of looking.
        await us.parts.ring.verify_keys_at(
            peer.server_name, [peer.key.key_id], times[-1:], enforce_validity=True
        )
        before = turns
        found = await us.parts.ring.verify_keys_at(
            peer.server_name, [peer.key.key_id], times, enforce_validity=True
        )
        assert turns - before >= 4
        counting.cancel()
    right = {peer.key.key_id: peer.key.verify_key}
    assert found == {at_ms: right if at_ms <= until_ms else {} for at_ms in times}


async def test_claims_to_be_servers_never_met_do_not_fill_the_asking_for_keys(
    world: tuple[EvilPeer, EvilPeer, FederationAlone],
) -> None:
    peer, known, us = world
    path = f"/_matrix/federation/v1/query/profile?user_id=@nobody:{us.server_name}"
    assert (await known.ask("GET", us.base_url, path, us.server_name))[0] == 404
    silent = asyncio.Event()

    async def say_nothing(_server_name: str) -> list[KeyRow]:
        await silent.wait()
        return []

    us.parts.ring._fetch = say_nothing  # type: ignore[method-assign]
    names = [f"{number}.example" for number in range(15)]

    async def claim(name: str) -> int:
        status, _ = await peer.ask("GET", us.base_url, path, us.server_name, origin=name)
        return status

    async with asyncio.TaskGroup() as group:
        claims = [group.create_task(claim(name)) for name in names]

        async def refused() -> bool:
            return sum(task.done() and task.result() == 429 for task in claims) == len(names) - MAX_STRANGERS

        await until(refused, "all but a few are turned away")
        # Whom we know is answered meanwhile.
        assert (await known.ask("GET", us.base_url, path, us.server_name))[0] == 404
        silent.set()
    assert sorted(task.result() for task in claims)[:MAX_STRANGERS] == [401] * MAX_STRANGERS


async def test_a_notary_is_believed_only_with_both_signatures(
    world: tuple[EvilPeer, EvilPeer, FederationAlone],
) -> None:
    peer, notary, us = world
    peer.answer("server", lambda _: Answer(500))
    forged = {**peer.key_object(), "verify_keys": {"ed25519:evil": {"key": OTHER.verify_key.base64}}}

    async def ask() -> dict[str, Any]:
        us.parts.ring.forget_failure(peer.server_name)
        return await us.parts.ring.verify_keys(
            peer.server_name, [peer.key.key_id], NOW, enforce_validity=False
        )

    for value in (
        peer.key_object(),  # not signed by the notary
        sign_json(forged, notary.server_name, notary.key),  # not signed by the server
        sign_json(peer.key_object(), notary.server_name, OTHER),  # signed with no key of the notary
    ):
        notary.answer("query", lambda _, value=value: {"server_keys": [value]})  # type: ignore[misc]
        assert await ask() == {}
    right = sign_json(peer.key_object(), notary.server_name, notary.key)
    notary.answer("query", lambda _: {"server_keys": [right]})
    assert await ask() == {peer.key.key_id: peer.key.verify_key}


async def test_our_keys_and_those_of_others_are_told_signed(
    world: tuple[EvilPeer, EvilPeer, FederationAlone],
) -> None:
    peer, _, us = world
    status, body = await peer.ask("GET", us.base_url, "/_matrix/key/v2/server", None, signed=False)
    assert status == 200
    verify_signed_json(body, us.server_name, us.key.verify_key)
    assert verify_key_from_base64(us.key.key_id, body["verify_keys"][us.key.key_id]["key"])
    path = f"/_matrix/key/v2/query/{peer.server_name}"
    status, body = await peer.ask("GET", us.base_url, path, None, signed=False)
    (value,) = body["server_keys"]
    verify_signed_json(value, us.server_name, us.key.verify_key)
    verify_signed_json(value, peer.server_name, peer.key.verify_key)
    wanted = {"server_keys": {us.server_name: {}, peer.server_name: {}, "not a name": {}, "localhost:1": {}}}
    status, body = await peer.ask("POST", us.base_url, "/_matrix/key/v2/query", None, wanted, signed=False)
    assert {value["server_name"] for value in body["server_keys"]} == {us.server_name, peer.server_name}


@pytest.mark.parametrize("version", ["4", "10"])
async def test_signatures_with_keys_that_are_unknown_expired_or_wrong(
    world: tuple[EvilPeer, EvilPeer, FederationAlone], version: str
) -> None:
    """Unknown and expired keys are skipped; of the known ones each signature must be right."""
    peer, _, us = world
    room = Room(version, creator=f"@boss:{peer.server_name}")
    event = room.send(room.creator, "m.room.message", {"body": "x"})
    old = SigningKey("ed25519:old", b"o" * 32)
    expired = {old.key_id: {"key": old.verify_key.base64, "expired_ts": event.origin_server_ts - 1}}
    both = {key.key_id: {"key": key.verify_key.base64} for key in (peer.key, OTHER)}
    value = peer.key_object(verify_keys=both, old_verify_keys=expired)
    value = sign_json(value, peer.server_name, OTHER)
    peer.answer("server", lambda _: value)
    unsigned = {**event.pdu, "signatures": {}}

    def signed(*keys: SigningKey, **wrong: str) -> dict[str, Any]:
        pdu: dict[str, Any] = dict(unsigned)
        for key in keys:
            pdu = sign_event(pdu, room.version, peer.server_name, key)
        signatures = {**pdu["signatures"].get(peer.server_name, {}), **wrong}
        return {**pdu, "signatures": {peer.server_name: signatures}}

    unknown = SigningKey("ed25519:unknown", b"u" * 32)
    for pdu, is_right in (
        (signed(peer.key), True),
        (signed(OTHER), True),
        (signed(peer.key, OTHER), True),
        (signed(peer.key, unknown), True),
        (signed(peer.key, old), True),
        (signed(peer.key, **{"ed448:other_kind": "A" * 86}), True),
        (signed(unknown), False),
        (signed(old), False),
        (signed(peer.key, **{OTHER.key_id: "A" * 86}), False),
        (signed(**{peer.key.key_id: "A" * 86}), False),
    ):
        checked = await us.parts.checker.check_one(pdu, room.version, room_id=event.room_id)
        assert isinstance(checked, Event) is is_right, (pdu["signatures"], checked)


async def test_two_notaries_that_are_away_do_not_wait_for_each_other(tmp_path: Path) -> None:
    away = [f"localhost:{free_port()}" for _ in range(3)]
    settings: dict[str, Any] = {"federation.key_servers": away[:2]}
    async with FederationAlone(tmp_path, TestCa(tmp_path / "ca"), **settings) as us, asyncio.timeout(30):
        assert await us.parts.ring.all_keys(away[2]) == []
        assert await us.parts.ring.all_keys(away[0]) == []
