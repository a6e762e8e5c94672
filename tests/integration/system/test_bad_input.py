"""What no client should send, over real HTTP at every route that is served: never a 5xx, never a bare error.

The routes come from the services themselves; see `tests.support.client_routes`.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.arbor_server import ArborServer
from tests.support.client_routes import Answer, Endpoint, ask, is_clean_error, served_endpoints
from tests.support.homeserver import Homeserver
from tests.support.matrix_client import MatrixClient, segment

AT_ONCE = 16

# The body is the room's, the account's: any JSON object will do.
FREE_FORM = {"send", "state", "account_data"}
# These take an empty body for `{}`.
EMPTY_IS_AN_OBJECT = {
    "createRoom", "join", "knock", "leave", "forget", "redact", "receipt", "publicRooms", "list", "new",
    "report", "request_token", "make_room_admin", "purge_history",
}  # fmt: skip


@dataclass
class World:
    """A user who has one room, and what the paths' parameters may name."""

    session: aiohttp.ClientSession
    base_url: str
    client: MatrixClient
    administrator: MatrixClient
    values: dict[str, str]

    async def ask(self, endpoint: Endpoint, *, path: str | None = None, **options: Any) -> Answer:
        """One request; the user's token unless another is given.

        An administrator asks what only they may, about themselves: else no body of it would ever be read.
        """
        values, asking = self.values, self.client
        if "admin" in endpoint.pattern.split("/"):
            asking = self.administrator
            values = values | {"user_id": asking.user_id}
        options.setdefault("token", asking.access_token)
        return await ask(
            self.session, self.base_url, endpoint.method, path or endpoint.path(values), **options
        )

    async def still_well(self) -> None:
        """The server answers this user, and takes an event in the room."""
        room_id = self.values["room_id"]
        event_id = await self.client.send(room_id, "still well")
        page = await self.client.messages(room_id, limit=1)
        assert page["chunk"][0]["event_id"] == event_id


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A server that asks no other: what is wrong with other servers' names is not the matter here."""
    server = ArborServer(tmp_path_factory.mktemp("alone"), config={"federation": {"enabled": False}})
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture
async def world(
    homeserver: Homeserver, session: aiohttp.ClientSession, unique: Callable[[str], str]
) -> World:
    client = await homeserver.register(session, unique("hostile"))
    administrator = await homeserver.register(session, unique("administrator"), admin=True)
    room_id = await client.create_room(preset="public_chat")
    event_id = await client.send(room_id, "first")
    values = {
        "room_id": room_id,
        "room_id_or_alias": room_id,
        "room_alias": f"#{unique('alias')}:{homeserver.server_name}",
        "event_id": event_id,
        "event_type": "m.room.message",
        "state_key": "k",
        "txn_id": unique("txn"),
        "user_id": client.user_id,
        "device_id": client.device_id,
        "key_name": "displayname",
        "filter_id": "0",
        "type": "org.example.type",
        "tag": "u.work",
        "kind": "override",
        "rule_id": "org.example.rule",
        "receipt_type": "m.read",
        "token": "new",
    }
    return World(session, homeserver.base_url, client, administrator, values)


@pytest.fixture
async def endpoints(tmp_path: Path) -> list[Endpoint]:
    return served_endpoints(tmp_path)


async def gathered(work: list[Any]) -> list[Any]:
    """The results of awaitables, so many at once as a busy client would."""
    semaphore = asyncio.Semaphore(AT_ONCE)

    async def one(awaitable: Any) -> Any:
        async with semaphore:
            return await awaitable

    return await asyncio.gather(*map(one, work))


def last_fixed(endpoint: Endpoint) -> set[str]:
    return {part for part in endpoint.pattern.split("/") if not part.startswith("{")}


DEEP_LIST = b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
DEEP_OBJECT = b'{"x":' * 10_000 + b"1" + b"}" * 10_000
HUGE = b'{"x":"' + b"y" * (2 * 1024**2) + b'"}'

HOSTILE: dict[str, tuple[bytes, int, set[str]]] = {
    "half an object": (b'{"a":', 400, {"M_NOT_JSON"}),
    "a word": (b"hello", 400, {"M_NOT_JSON"}),
    "form data": (b"a=b&c=d", 400, {"M_NOT_JSON"}),
    "something after it": (b"{} {}", 400, {"M_NOT_JSON"}),
    "a trailing comma": (b'{"a":1,}', 400, {"M_NOT_JSON"}),
    "single quotes": (b"{'a':1}", 400, {"M_NOT_JSON"}),
    "NaN": (b'{"a":NaN}', 400, {"M_NOT_JSON"}),
    "Infinity": (b'{"a":-Infinity}', 400, {"M_NOT_JSON"}),
    "bad UTF-8": (b'{"a":"\xff\xfe"}', 400, {"M_NOT_JSON"}),
    "an overlong slash": (b'{"a":"\xc0\xaf"}', 400, {"M_NOT_JSON"}),
    "a surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}', 400, {"M_NOT_JSON"}),
    "UTF-16": ('{"a":"b"}'.encode("utf-16"), 400, {"M_NOT_JSON"}),
    "a raw newline": (b'{"a":"\n"}', 400, {"M_NOT_JSON"}),
    "NUL": (b'{"a":"\0"}', 400, {"M_NOT_JSON"}),
    "a list": (b"[]", 400, {"M_BAD_JSON"}),
    "a text": (b'"x"', 400, {"M_BAD_JSON"}),
    "a number": (b"3", 400, {"M_BAD_JSON"}),
    "null": (b"null", 400, {"M_BAD_JSON"}),
    "lists 10,000 deep": (DEEP_LIST, 400, {"M_BAD_JSON", "M_NOT_JSON"}),
    "objects 10,000 deep": (DEEP_OBJECT, 400, {"M_BAD_JSON", "M_NOT_JSON"}),
    "too much": (HUGE, 413, {"M_TOO_LARGE"}),
}


def test_every_route_with_a_body_has_an_example(endpoints: list[Endpoint]) -> None:
    without = {"logout", "all"}
    unknown = [
        str(endpoint)
        for endpoint in endpoints
        if endpoint.method in ("PUT", "POST")
        and not endpoint.takes_body
        and endpoint.pattern.rsplit("/", 1)[1] not in without
    ]
    assert not unknown


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_body_that_is_no_json_object(name: str, world: World, endpoints: list[Endpoint]) -> None:
    data, status, errcodes = HOSTILE[name]
    taking = [endpoint for endpoint in endpoints if endpoint.takes_body]
    answers = await gathered([world.ask(endpoint, data=data) for endpoint in taking])
    wrong = [
        f"{endpoint}: {answer.status} {answer.json}"
        for endpoint, answer in zip(taking, answers, strict=True)
        if answer.status != status or answer.errcode not in errcodes or not is_clean_error(answer)
    ]
    assert not wrong, "\n".join(wrong)
    await world.still_well()


async def test_no_body_at_all(world: World, endpoints: list[Endpoint]) -> None:
    taking = [
        endpoint
        for endpoint in endpoints
        if endpoint.takes_body and not last_fixed(endpoint) & EMPTY_IS_AN_OBJECT
    ]
    assert len(taking) > 20
    answers = await gathered([world.ask(endpoint, data=b"") for endpoint in taking])
    wrong = [
        f"{endpoint}: {answer.status} {answer.json}"
        for endpoint, answer in zip(taking, answers, strict=True)
        # A challenge of user-interactive auth has no errcode.
        if not is_clean_error(answer)
        and not (answer.status == 401 and "flows" in answer.json)
        and not (answer.status == 200 and endpoint.method == "DELETE")
    ]
    assert not wrong, "\n".join(wrong)


def deletes_room(endpoint: Endpoint) -> bool:
    """Whether it takes the world's room away."""
    return endpoint.method == "DELETE" and endpoint.pattern.endswith("/rooms/{room_id}")


WRONG_VALUES: list[Any] = [
    None, True, 1, -1, 2**53, 10**30, 1.5, 1e300, "", "x", "\0", "\ud83d\ude00" * 300, "a" * 70_000,
    [], [None], [[]], {}, {"a": None}, [{"type": 1}],
]  # fmt: skip


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__


def replaced(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The body with another value at a path of keys."""
    head, *rest = path
    return {**body, head: replaced(body[head], tuple(rest), value) if rest else value}


def paths_of(body: dict[str, Any], depth: int = 3) -> list[tuple[str, ...]]:
    """The paths of keys in a body."""
    found: list[tuple[str, ...]] = []
    for key, value in body.items():
        found.append((key,))
        if isinstance(value, dict) and depth > 1:
            found += [(key, *path) for path in paths_of(value, depth - 1)]
    return found


# What is not looked at may be anything.
NOT_LOOKED_AT = {
    "include_all_networks", "third_party_instance_id", "m.federate", "ban",
    "algorithm", "session", "inhibit_login",
}  # fmt: skip


async def test_wrong_types_in_every_field(world: World, endpoints: list[Endpoint]) -> None:
    """Every field of every body, one after the other, is given values of all kinds."""
    cases: list[tuple[Endpoint, tuple[str, ...], Any]] = []
    for endpoint in endpoints:
        # To leave would end the world; what these read is what `join` reads. To delete its room would too.
        if not endpoint.takes_body or last_fixed(endpoint) & {"leave", "forget"} or deletes_room(endpoint):
            continue
        for path in paths_of(endpoint.example):
            cases += [(endpoint, path, value) for value in WRONG_VALUES]
    assert len(cases) > 1500

    # orjson has no integers beyond 64 bits, this has.
    answers = await gathered(
        [
            world.ask(endpoint, data=json.dumps(replaced(endpoint.example, path, value)).encode())
            for endpoint, path, value in cases
        ]
    )
    wrong: list[str] = []
    for (endpoint, path, value), answer in zip(cases, answers, strict=True):
        shown = f"{endpoint} {'.'.join(path)} = {str(value)[:30]!r}: {answer.status} {str(answer.json)[:120]}"
        challenge = answer.status == 401 and isinstance(answer.json, dict) and "flows" in answer.json
        if not (answer.status in (200, 201) or challenge or is_clean_error(answer)):
            wrong.append(shown)
        original: Any = endpoint.example
        for key in path:
            original = original[key]
        if (
            answer.status in (200, 201)
            and value is not None
            and kind_of(value) != kind_of(original)
            and not last_fixed(endpoint) & FREE_FORM
            and not set(path) & NOT_LOOKED_AT
        ):
            wrong.append("taken: " + shown)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:60])
    await world.still_well()


BAD_SEGMENTS = [
    "x", "!", "@", "$", "%23", "%00", "%ff", "%C0%AF", "%ED%A0%80", "%zz", "%", "..", ".", "%2F", "%20", "*",
    "%F0%9F%98%80", "a" * 256, "!" + "a" * 300 + ":b", "@" + "a" * 300 + ":b", "$" + "a" * 300, "-1", "0",
    "99999999999999999999", "!x:unknown.test", "%40nobody:unknown.test", "%23nobody:arbor.test", "$unknown",
]  # fmt: skip


async def test_wrong_ids_in_every_path(world: World, endpoints: list[Endpoint]) -> None:
    cases: list[tuple[Endpoint, str, str]] = []
    for endpoint in endpoints:
        for name in endpoint.parameters:
            good = {key: segment(value) for key, value in world.values.items()}
            cases += [(endpoint, name, endpoint.raw_path({**good, name: bad})) for bad in BAD_SEGMENTS]
    assert len(cases) > 1500
    answers = await gathered(
        [
            world.ask(endpoint, path=path, body=endpoint.example if endpoint.takes_body else None)
            for endpoint, _name, path in cases
        ]
    )
    # What a client makes up itself may be anything within limits.
    free = {
        "txn_id",
        "event_type",
        "state_key",
        "type",
        "tag",
        "key_name",
        "rule_id",
        "filter_id",
        "rel_type",
        "token",
    }
    wrong = []
    for (endpoint, name, path), answer in zip(cases, answers, strict=True):
        taken = answer.status in (200, 302)
        challenge = answer.status == 401 and isinstance(answer.json, dict) and "flows" in answer.json
        if not (is_clean_error(answer) or taken or challenge):
            wrong.append(f"{name} {endpoint.method} {path[:160]}: {answer.status} {answer.json}")
        elif (
            taken
            and name in ("room_id", "event_id")
            and last_fixed(endpoint) & {"account_data", "tags", "receipt"}
        ):
            # A user's own notes on a room need no room; an event that was read may not have come here yet.
            pass
        elif taken and last_fixed(endpoint) & {"report", "block"}:
            # Nobody learns from a report whether what it names exists; a room can be blocked before it is known.
            pass
        elif taken and name not in free and "leave" not in path and endpoint.method != "DELETE":
            wrong.append(f"taken: {name} {endpoint.method} {path[:160]}: {str(answer.json)[:100]}")
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:60])


QUERIES = {
    "/sync": ["since", "timeout", "full_state", "set_presence", "filter", "use_state_after"],
    "/messages": ["from", "to", "dir", "limit", "filter"],
    "/members": ["at", "membership", "not_membership"],
    "/context/{event_id}": ["limit", "filter"],
    "/publicRooms": ["limit", "since", "server"],
    "/state/{event_type}": ["format"],
    "/createRoom": ["access_token", "user_id"],
    "/available": ["username"],
    "/users": [
        "from",
        "limit",
        "name",
        "user_id",
        "guests",
        "deactivated",
        "admins",
        "locked",
        "order_by",
        "dir",
    ],
    "/registration_tokens": ["valid"],
}
BAD_QUERY_VALUES = [
    "", "x", "-1", "1.5", "1e9", "99999999999999999999", "null", "true", "%00", "%ff", "%zz", "{}", "[]",
    "%7B", "%7B%22room%22:3%7D", "a1_x.1_y.1", "a1_x.99999999999999999999_y.1", "t1_1", "t1_-1_0", "t1_1_1_1",
    "t1_9999999999999999999_9999999999999999999", "s1_2_3_4", "a" * 5000, "%F0%9F%98%80", "b%26x=1",
    '%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:-1%7D%7D%7D',
]  # fmt: skip


async def test_wrong_query_parameters(world: World, endpoints: list[Endpoint]) -> None:
    cases: list[tuple[Endpoint, str]] = []
    for ending, names in QUERIES.items():
        matching = [endpoint for endpoint in endpoints if endpoint.pattern.endswith(ending)]
        assert matching, ending
        for endpoint in matching:
            base = endpoint.path(world.values)
            for name in names:
                for value in BAD_QUERY_VALUES:
                    others = "" if name == "timeout" else "&timeout=0"
                    others += "" if name == "dir" or ending != "/messages" else "&dir=b"
                    # A long poll that is asked for well is answered in its own good time.
                    if name == "timeout" and value.isdigit():
                        continue
                    cases.append((endpoint, f"{base}?{name}={value}{others}"))
    answers = await gathered(
        [
            world.ask(endpoint, path=path, body=endpoint.example if endpoint.takes_body else None)
            for endpoint, path in cases
        ]
    )
    wrong = [
        f"{path[:160]}: {answer.status} {str(answer.json)[:120]}"
        for (_, path), answer in zip(cases, answers, strict=True)
        if answer.status != 200 and not is_clean_error(answer)
    ]
    assert not wrong, "\n".join(wrong[:60])


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ("/sync?since=nonsense", "M_INVALID_PARAM"),
        ("/sync?since=s72594_4483_1934", "M_INVALID_PARAM"),
        ("/sync?timeout=soon", "M_INVALID_PARAM"),
        ("/sync?set_presence=asleep", "M_INVALID_PARAM"),
        ("/sync?filter=%7B", "M_NOT_JSON"),
        ("/sync?filter=%7B%22room%22:3%7D", "M_BAD_JSON"),
        ("/sync?filter=12345", "M_INVALID_PARAM"),
        ("/rooms/{room}/messages", "M_MISSING_PARAM"),
        ("/rooms/{room}/messages?dir=up", "M_INVALID_PARAM"),
        ("/rooms/{room}/messages?dir=b&from=nonsense", "M_INVALID_PARAM"),
        ("/rooms/{room}/messages?dir=b&limit=many", "M_INVALID_PARAM"),
        ("/rooms/{room}/members?at=nonsense", "M_INVALID_PARAM"),
        ("/rooms/{room}/members?membership=guest", "M_INVALID_PARAM"),
    ],
)
async def test_wrong_tokens_filters_and_directions(query: str, errcode: str, world: World) -> None:
    path = "/_matrix/client/v3" + query.replace("{room}", segment(world.values["room_id"]))
    answer = await ask(world.session, world.base_url, "GET", path, token=world.client.access_token)
    assert (answer.status, answer.errcode) == (400, errcode)


async def test_a_token_from_the_future_is_refused(world: World) -> None:
    now = (await world.client.sync())["next_batch"]
    epoch = now.split("_")[1].split(".")[0]
    future = f"a1_{epoch}.{10**12}_{now.split('_')[2]}"
    path = f"/_matrix/client/v3/sync?since={future}"
    answer = await ask(world.session, world.base_url, "GET", path, token=world.client.access_token)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


async def test_every_route_but_the_open_ones_wants_a_token(world: World, endpoints: list[Endpoint]) -> None:
    # There is nothing behind this one yet.
    closed = [one for one in endpoints if not one.open and not one.pattern.endswith("/rtc/transports")]
    assert len(closed) > 60
    wrong = []
    for token, errcode in ((None, "M_MISSING_TOKEN"), ("unknown", "M_UNKNOWN_TOKEN")):
        # Who asks is asked first: what is wrong with a body is told to nobody.
        for body in (b"{}", b"{"):
            answers = await gathered([world.ask(one, token=token, data=body) for one in closed])
            wrong += [
                f"{endpoint} {body!r}: {answer.status} {answer.json}"
                for endpoint, answer in zip(closed, answers, strict=True)
                if (answer.status, answer.errcode) != (401, errcode)
            ]
    assert not wrong, "\n".join(wrong)


async def test_open_routes_do_not_want_one(world: World, endpoints: list[Endpoint]) -> None:
    for endpoint in endpoints:
        if endpoint.open:
            body = endpoint.example if endpoint.takes_body else None
            answer = await world.ask(endpoint, token=None, body=body)
            assert answer.errcode not in ("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN") or endpoint.pattern.endswith(
                "/refresh"
            ), f"{endpoint}: {answer}"


async def test_unknown_methods(world: World, endpoints: list[Endpoint]) -> None:
    methods: dict[str, set[str]] = {}
    for endpoint in endpoints:
        methods.setdefault(endpoint.path(world.values), set()).add(endpoint.method)
    wrong = []
    for path, known in methods.items():
        for method in {"GET", "PUT", "POST", "DELETE", "PATCH"} - known:
            answer = await ask(
                world.session, world.base_url, method, path, token=world.client.access_token, data=b"{}"
            )
            allowed = {part.strip() for part in answer.headers.get("Allow", "").split(",")}
            if (answer.status, answer.errcode) != (405, "M_UNRECOGNIZED") or not known <= allowed:
                wrong.append(f"{method} {path}: {answer.status} {answer.json} {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


UNKNOWN_PATHS = [
    "/",
    "/_matrix",
    "/_matrix/client/v3",
    "/_matrix/client/v3/",
    "/_matrix/client/v3/nothing",
    "/_matrix/client/v4/sync",
    "/_matrix/client/v3/sync/",
    "/_matrix/client/v3//sync",
    "/_matrix/client/v3/SYNC",
    "/_matrix/client/v3/rooms",
    "/_matrix/client/v3/rooms//messages",
    "/_matrix/client/unstable/org.example/nothing",
    "/_matrix/federation/v1/nothing",
    "/_synapse/admin/v1/nothing",
    "/favicon.ico",
]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_unknown_paths(method: str, world: World) -> None:
    for path in UNKNOWN_PATHS:
        answer = await ask(
            world.session, world.base_url, method, path, token=world.client.access_token, data=b"{}"
        )
        assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED"), path
        assert is_clean_error(answer)


# -- events --


def filled(size: int) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": "x" * size}


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1.5}', b'{"a":1.0}', b'{"a":1e3}', b'{"a":-0.0}', b'{"a":9007199254740992}',
        b'{"a":-9007199254740992}', b'{"a":18446744073709551615}', b'{"a":123456789012345678901234567890}',
        b'{"a":[{"b":[0.1]}]}',
    ],
)  # fmt: skip
async def test_numbers_outside_canonical_json(content: bytes, world: World) -> None:
    room = f"/_matrix/client/v3/rooms/{segment(world.values['room_id'])}"
    power = b'{"users":{"' + world.client.user_id.encode() + b'":100},"users_default":' + content[5:]
    for method, path, body in (
        ("PUT", "/send/m.room.message/n1", content),
        ("PUT", "/state/org.example", content),
        ("PUT", "/state/m.room.power_levels", power),
        ("PUT", f"/redact/{segment(world.values['event_id'])}/n1", content),
    ):
        answer = await ask(
            world.session, world.base_url, method, room + path, token=world.client.access_token, data=body
        )
        assert (answer.status, answer.errcode) == (400, "M_BAD_JSON"), (path, answer)
    for key in (b"creation_content", b"power_level_content_override"):
        body = b'{"' + key + b'":' + content + b"}"
        path = "/_matrix/client/v3/createRoom"
        answer = await ask(
            world.session, world.base_url, "POST", path, token=world.client.access_token, data=body
        )
        assert (answer.status, answer.errcode) == (400, "M_BAD_JSON"), (key, answer)


@pytest.mark.parametrize("number", [2**53 - 1, -(2**53) + 1, 0, -1])
async def test_numbers_inside_it(number: int, world: World) -> None:
    room_id = world.values["room_id"]
    event_id = await world.client.send(room_id, {"number": number}, "org.example")
    event = await world.client.get(f"/rooms/{segment(room_id)}/event/{segment(event_id)}")
    assert event["content"] == {"number": number}


async def test_an_event_has_at_most_65536_bytes(world: World) -> None:
    room_id = world.values["room_id"]
    room = f"/_matrix/client/v3/rooms/{segment(room_id)}"

    async def send(size: int) -> Answer:
        return await ask(
            world.session,
            world.base_url,
            "PUT",
            f"{room}/send/m.room.message/size{size}",
            token=world.client.access_token,
            body=filled(size),
        )

    assert (await send(64_000)).status == 200
    for size in (65_536, 70_000, 1_000_000):
        answer = await send(size)
        assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE"), size
    # The limit itself: the greatest that is taken is stored with at most 65,536 bytes.
    least, most = 64_000, 65_536
    while most - least > 1:
        middle = (least + most) // 2
        answer = await send(middle)
        assert answer.status == 200 or (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
        least, most = (middle, most) if answer.status == 200 else (least, middle)
    assert 64_500 < least < 65_536
    state = await ask(
        world.session,
        world.base_url,
        "PUT",
        f"{room}/state/m.room.topic",
        token=world.client.access_token,
        body={"topic": "x" * 65_536},
    )
    assert (state.status, state.errcode) == (413, "M_TOO_LARGE")
    await world.still_well()


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/send/{}/t1", "t" * 255),
        ("/state/{}", "t" * 255),
        ("/state/org.example/{}", "k" * 255),
        # Bytes, not characters.
        ("/state/org.example/{}", "é" * 127),
        ("/send/{}/t2", "é" * 127),
    ],
)
async def test_types_and_state_keys_have_at_most_255_bytes(path: str, good: str, world: World) -> None:
    room = f"/_matrix/client/v3/rooms/{segment(world.values['room_id'])}"
    token = world.client.access_token
    taken = await ask(
        world.session, world.base_url, "PUT", room + path.format(segment(good)), token=token, body={}
    )
    assert taken.status == 200, taken
    # Another transaction, or it would be the same event.
    path = path.format(segment(good + "éé")).replace("/t1", "/u1").replace("/t2", "/u2")
    refused = await ask(world.session, world.base_url, "PUT", room + path, token=token, body={})
    assert is_clean_error(refused)
    assert refused.errcode in ("M_TOO_LARGE", "M_INVALID_PARAM", "M_BAD_JSON")


@pytest.mark.parametrize(
    ("room_id", "status", "errcode"),
    [
        ("!unknown:arbor.test", 403, "M_FORBIDDEN"),
        ("!unknown:elsewhere.test", 403, "M_FORBIDDEN"),
        ("nonsense", 400, "M_INVALID_PARAM"),
    ],
)
async def test_rooms_one_is_not_in(room_id: str, status: int, errcode: str, world: World) -> None:
    room = f"/_matrix/client/v3/rooms/{segment(room_id)}"
    for method, path in (
        ("PUT", "/send/m.room.message/t"),
        ("PUT", "/state/m.room.name"),
        ("PUT", "/redact/$x/t"),
        ("GET", "/messages?dir=b"),
        ("GET", "/state"),
        ("GET", "/state/m.room.name"),
        ("GET", "/members"),
        ("GET", "/joined_members"),
        ("POST", "/invite"),
        ("POST", "/kick"),
        ("PUT", f"/typing/{segment(world.client.user_id)}"),
    ):
        body = {"user_id": "@nobody:arbor.test", "typing": True}
        answer = await ask(
            world.session,
            world.base_url,
            method,
            room + path,
            token=world.client.access_token,
            body=body if method != "GET" else None,
        )
        # An unknown room and one that one may not see look alike, or the room is said not to be there.
        expected = {(status, errcode), (403, "M_FORBIDDEN")}
        expected |= {(404, "M_NOT_FOUND")} if status == 403 else set()
        assert (answer.status, answer.errcode) in expected, (method, path, answer)


async def test_duplicate_keys_are_one(world: World) -> None:
    path = f"/_matrix/client/v3/rooms/{segment(world.values['room_id'])}/send/org.example/dup"
    data = b'{"a":1,"a":2}'
    answer = await ask(world.session, world.base_url, "PUT", path, token=world.client.access_token, data=data)
    assert answer.status == 200
    event = await world.client.get(
        f"/rooms/{segment(world.values['room_id'])}/event/{segment(answer.json['event_id'])}"
    )
    assert event["content"] == {"a": 2}
    assert orjson.dumps(event["content"]) == b'{"a":2}'
