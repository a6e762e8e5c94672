"""Row 29: a path is taken byte for byte, so that what a proxy in front decides by it is what we decide.

Each route is asked for with a suffix, doubled and encoded slashes, `;x`, dots, other case and a slash at the
end. None of these may reach a handler under another name, and none may get round the check of the token.
"""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from clientapi.service import create as create_clientapi
from servicekit.config import load_config
from servicekit.http import Request, Response, Router, json_response
from syncapi.service import create as create_syncapi
from tests.support.http_listener import listening, raw_request

ROUTES = {
    "/_matrix/client/v3/account/whoami": "/_matrix/client/v3/account/whoami",
    "/_matrix/client/v3/rooms/{room_id}/members": "/_matrix/client/v3/rooms/!r:x/members",
    "/_matrix/client/v3/rooms/{room_id}/state/{event_type}": "/_matrix/client/v3/rooms/!r:x/state/m.t",
    "/_synapse/admin/v1/register": "/_synapse/admin/v1/register",
    "/_matrix/federation/v1/event/{event_id}": "/_matrix/federation/v1/event/$e",
}


@pytest.fixture
def router() -> Router:
    async def answer(request: Request) -> Response:
        request.require_access_token()
        return json_response({"route": request.route.pattern, "params": request.path_params})

    router = Router()
    for pattern in ROUTES:
        router.add("GET", pattern, answer)
    return router


def variants(path: str) -> list[str]:
    """Other spellings of a path that some proxy may take for the same."""
    first, *rest = path[1:].split("/")
    tail = "/".join(rest)
    return [
        f"{path}x",
        f"{path}/",
        f"{path}//",
        f"{path}/x/y/z",
        f"{path};x=1",
        f"{path}%2F",
        f"{path}%00",
        f"{path}.json",
        f"/{path}",
        f"//{first}//{tail}",
        f"/{first}//{tail}",
        f"/{first}%2F{tail}",
        f"/./{first}/{tail}",
        f"/{first}/../{first}/{tail}",
        f"/{first}/%2e%2e/{first}/{tail}",
        f"/%5F{first[1:]}/{tail}",
        f"/{first.upper()}/{tail}",
        f"/{first}/{tail.upper()}",
        f"/{first};x/{tail}",
        f"/{first}\\{tail}",
        f"/x/..{path}",
    ]


@pytest.mark.parametrize("pattern", ROUTES)
async def test_other_spellings_reach_no_other_route(router: Router, pattern: str) -> None:
    path = ROUTES[pattern]
    headers = {"Authorization": "Bearer t"}
    async with listening(router) as port:
        exact = await raw_request(port, "GET", path, headers=headers)
        assert (exact.status, exact.json["route"]) == (200, pattern)
        for variant in variants(path):
            answer = await raw_request(port, "GET", variant, headers=headers)
            if answer.status == 200:
                # Only a parameter may differ: the same route, and the odd bytes inside the parameter.
                assert answer.json["route"] == pattern, variant
                assert list(answer.json["params"].values())[-1] not in ("m.t", "$e", "!r:x"), variant
            else:
                assert answer.status in (400, 404), variant
                assert answer.status == 400 or answer.errcode == "M_UNRECOGNIZED", variant


@pytest.mark.parametrize("pattern", ROUTES)
async def test_no_spelling_gets_round_the_token(router: Router, pattern: str) -> None:
    path = ROUTES[pattern]
    async with listening(router) as port:
        for variant in [path, *variants(path)]:
            assert (await raw_request(port, "GET", variant)).status in (400, 401, 404), variant


async def test_every_route_that_is_served_is_matched_byte_for_byte(tmp_path: Path) -> None:
    """All routes of the services: whatever way a path is spelled, what answers it has just these segments."""
    config = load_config(None, {}, {"server_name": "arbor.test", "data_dir": str(tmp_path)})
    served = Router()
    for create in (create_clientapi, create_syncapi):
        create(config).routes(served)
    assert len(served.routes) > 150
    for route in served.routes:
        path = re.sub(r"\{[^}]*\}", "x", route.pattern)
        assert served.match(route.method, path)[0] is route, route.pattern
        for variant in variants(path):
            found, params, _ = served.match(route.method, variant)
            if found is None:
                continue
            fits = any(
                len(pattern.split("/")) == len(variant.split("/"))
                and all(
                    part == given or (part.startswith("{") and unquote(given) in params.values())
                    for part, given in zip(pattern.split("/"), variant.split("/"), strict=True)
                )
                for pattern in (found.pattern, *found.aliases)
            )
            assert fits, (found.pattern, variant)


async def test_an_encoded_slash_stays_inside_its_parameter(router: Router) -> None:
    async with listening(router) as port:
        headers = {"Authorization": "Bearer t"}
        target = "/_matrix/client/v3/rooms/!r%2Fstate%2Fm.t/members"
        answer = await raw_request(port, "GET", target, headers=headers)
        assert answer.json["params"] == {"room_id": "!r/state/m.t"}
        dots = await raw_request(port, "GET", "/_matrix/federation/v1/event/..", headers=headers)
        assert dots.json["params"] == {"event_id": ".."}, "a parameter means nothing to the router"


async def test_a_listener_without_a_resource_does_not_know_its_paths(router: Router) -> None:
    async with listening(router.restricted_to(["client"])) as port:
        headers = {"Authorization": "Bearer t"}
        for path in ("/_synapse/admin/v1/register", "/_matrix/federation/v1/event/$e"):
            answer = await raw_request(port, "GET", path, headers=headers)
            assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")
