"""The router: what fits, what does not, and what nothing is normalised into."""

import pytest

from servicekit.errors import MatrixError
from servicekit.http import Request, Response, Router, json_response


async def handler(_request: Request) -> Response:
    return json_response({})


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/_matrix/client/versions", handler)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/state", handler)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/state/{event_type}", handler)
    router.add("PUT", "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key?}", handler)
    router.add("GET", "/_matrix/client/v3/rooms/{room_id}/{fallback}", handler)
    router.add(
        "GET",
        "/_matrix/client/v1/room_summary/{room}",
        handler,
        aliases=["/_matrix/client/unstable/x/{room}"],
    )
    router.add("POST", "/_synapse/admin/v1/register", handler)
    router.add("GET", "/health", handler)
    return router


def found(router: Router, method: str, path: str) -> tuple[str, dict[str, str]] | frozenset[str]:
    """Return pattern and parameters, or the methods there are."""
    route, params, allowed = router.match(method, path)
    return (route.pattern, params) if route is not None else allowed


def test_a_parameter_is_one_segment_decoded_once(router: Router) -> None:
    path = "/_matrix/client/v3/rooms/!a%2Fb%3Ac.d/state/m.%25room"
    assert found(router, "GET", path) == (
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
        {"room_id": "!a/b:c.d", "event_type": "m.%room"},
    )


def test_a_plus_in_a_path_is_a_plus(router: Router) -> None:
    result = found(router, "GET", "/_matrix/client/v3/rooms/a+b/state")
    assert result == ("/_matrix/client/v3/rooms/{room_id}/state", {"room_id": "a+b"})


@pytest.mark.parametrize("old", ["/_matrix/client/r0", "/_matrix/client/api/v1"])
def test_old_versions_are_served_as_v3(router: Router, old: str) -> None:
    assert found(router, "GET", f"{old}/rooms/x/state") == (
        "/_matrix/client/v3/rooms/{room_id}/state",
        {"room_id": "x"},
    )


def test_an_alias_leads_to_the_same_route(router: Router) -> None:
    assert found(router, "GET", "/_matrix/client/unstable/x/r") == (
        "/_matrix/client/v1/room_summary/{room}",
        {"room": "r"},
    )


def test_a_fixed_segment_goes_before_a_parameter_and_a_dead_end_is_left_again(router: Router) -> None:
    router.add("GET", "/_matrix/client/v3/rooms/special/only", handler)
    assert found(router, "GET", "/_matrix/client/v3/rooms/special/only") == (
        "/_matrix/client/v3/rooms/special/only",
        {},
    )
    assert found(router, "GET", "/_matrix/client/v3/rooms/special/state") == (
        "/_matrix/client/v3/rooms/{room_id}/state",
        {"room_id": "special"},
    )


def test_only_a_parameter_that_says_so_may_be_empty(router: Router) -> None:
    base = "/_matrix/client/v3/rooms/x/state/m.room.name"
    assert found(router, "PUT", f"{base}/") == (
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key?}",
        {"room_id": "x", "event_type": "m.room.name", "state_key": ""},
    )
    assert found(router, "PUT", f"{base}/k")
    assert found(router, "GET", "/_matrix/client/v3/rooms//state") == frozenset()


def test_known_paths_say_which_methods_they_know(router: Router) -> None:
    assert found(router, "DELETE", "/_matrix/client/versions") == frozenset({"GET"})
    assert found(router, "PUT", "/_matrix/client/v3/rooms/x/state/t") == frozenset({"GET"})
    assert found(router, "GET", "/_matrix/client/nothing") == frozenset()


def test_head_is_answered_by_get(router: Router) -> None:
    assert found(router, "HEAD", "/_matrix/client/versions") == ("/_matrix/client/versions", {})


@pytest.mark.parametrize("segment", ["%", "%4", "%zz", "%ff", "%c3%28", "%ED%A0%80", "a%-1b"])
def test_a_segment_that_is_not_percent_encoded_utf8_is_refused(router: Router, segment: str) -> None:
    with pytest.raises(MatrixError) as caught:
        router.match("GET", f"/_matrix/client/v3/rooms/{segment}/state")
    assert (caught.value.errcode, caught.value.http_status) == ("M_INVALID_PARAM", 400)


def test_a_path_and_method_belong_to_one_route(router: Router) -> None:
    with pytest.raises(ValueError, match="taken"):
        router.add("GET", "/_matrix/client/v3/rooms/{other}/state", handler)
    with pytest.raises(ValueError, match="parameter"):
        router.add("GET", "/a/{b", handler)
    with pytest.raises(ValueError, match="other parameters"):
        router.add("GET", "/a/{b}", handler, aliases=["/c/{d}"])
    with pytest.raises(ValueError, match="slash"):
        router.add("GET", "a", handler)


def test_a_listener_serves_its_resources_only(router: Router) -> None:
    admin = router.restricted_to(["admin"])
    assert found(admin, "POST", "/_synapse/admin/v1/register")
    assert found(admin, "GET", "/health") == ("/health", {})
    assert found(admin, "GET", "/_matrix/client/versions") == frozenset()
    assert found(router.restricted_to(["federation"]), "POST", "/_synapse/admin/v1/register") == frozenset()
