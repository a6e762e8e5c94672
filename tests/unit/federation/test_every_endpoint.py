"""No endpoint of the server-server API is missing silently: each is served, or listed with the reason."""

import re
from pathlib import Path

import pytest

from federation.parts import ENDPOINTS
from federation.service import create
from servicekit.config import load_config
from servicekit.http import Router
from tests.support.federation_endpoints import ACL_PROTECTED, BESIDES, NOT_SERVED, SERVED
from tests.support.spec_endpoints import parse

# Whoever asks these has no key to sign with, or is asked for it.
OPEN = {
    ("GET", "/.well-known/matrix/server"),
    ("PUT", "/_matrix/federation/v1/3pid/onbind"),
    ("GET", "/_matrix/federation/v1/openid/userinfo"),
    ("GET", "/_matrix/federation/v1/version"),
    ("POST", "/_matrix/key/v2/query"),
    ("GET", "/_matrix/key/v2/query/{serverName}"),
    ("GET", "/_matrix/key/v2/server"),
}


@pytest.fixture
async def router(tmp_path: Path) -> Router:
    """The service's routes; it is not started."""
    config = load_config(None, {}, {"server_name": "arbor.test", "data_dir": str(tmp_path)})
    made = Router()
    create(config).routes(made)
    return made


def example(path: str) -> str:
    """The path with `x` for each parameter."""
    return re.sub(r"\{[^}]*\}", "x", path)


def not_served() -> list[tuple[str, str]]:
    """Every endpoint that is not served."""
    return [item for lines in NOT_SERVED.values() for item in parse(lines)]


async def test_what_is_said_to_be_served_is_served(router: Router) -> None:
    for method, path in [*parse(SERVED), *parse(BESIDES)]:
        assert router.match(method, example(path))[0] is not None, f"{method} {path}"


async def test_what_is_said_to_be_missing_is_missing(router: Router) -> None:
    for method, path in not_served():
        assert router.match(method, example(path))[0] is None, f"{method} {path} is served by now"


def test_the_table_is_whole() -> None:
    served, missing = parse(SERVED), not_served()
    assert len({*served, *missing}) == len(served) + len(missing)
    # The specification v1.19 has 36 of them.
    assert len(served) + len(missing) == 36
    assert set(parse(ACL_PROTECTED)) <= set(served)


async def test_nothing_is_served_that_is_in_no_list(router: Router) -> None:
    listed = {router.match(method, example(path))[0] for method, path in [*parse(SERVED), *parse(BESIDES)]}
    old = {
        "/_matrix/federation/v1/send_join/{room_id}/{event_id}",
        "/_matrix/federation/v1/send_leave/{room_id}/{event_id}",
    }
    others = [route.pattern for route in router.routes if route not in listed and route.pattern not in old]
    assert others == []


async def test_all_others_want_a_signature(router: Router) -> None:
    unsigned = {
        (endpoint.method, example(endpoint.pattern.replace("?}", "}")))
        for endpoints in ENDPOINTS.values()
        for endpoint in endpoints
        if not endpoint.signed
    }
    for method, path in parse(SERVED):
        assert ((method, example(path)) in unsigned) == ((method, path) in OPEN), f"{method} {path}"
