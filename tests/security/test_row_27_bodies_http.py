"""Row 27: bodies of every bad kind are answered with a cheap 4xx, and the listener goes on."""

import time

import pytest

from servicekit.config.schema import Http
from servicekit.http import Request, Response, Router, json_response
from tests.support.http_listener import Answer, connected, listening, raw_request, read_answer

PATH = "/_matrix/client/v3/thing"
LIMITS = Http(max_body=10_000, max_federation_body=20_000, body_timeout=0.5)


@pytest.fixture
def router() -> Router:
    async def take(request: Request) -> Response:
        return json_response(await request.json())

    async def ignore(_request: Request) -> Response:
        return json_response({"ignored": True})

    router = Router()
    router.add("PUT", PATH, take)
    router.add("PUT", "/_matrix/federation/v1/thing", take)
    router.add("PUT", "/_matrix/client/v3/ignore", ignore)
    return router


async def put(router: Router, body: bytes, headers: dict[str, str] | None = None, path: str = PATH) -> Answer:
    """Send a body; afterwards the listener still answers."""
    async with listening(router, LIMITS) as port:
        answer = await raw_request(port, "PUT", path, body, headers)
        assert (await raw_request(port, "PUT", PATH, b"{}")).status == 200
        return answer


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b"{'a': 1}", "M_NOT_JSON"),
        (b'{"a": NaN}', "M_NOT_JSON"),
        (b'{"a": Infinity}', "M_NOT_JSON"),
        (b'{"a": 1} trailing', "M_NOT_JSON"),
        (b'{"a": "\xff\xfe"}', "M_NOT_JSON"),
        (b'{"a": "\xed\xa0\x80"}', "M_NOT_JSON"),
        (b'{"a": "\\ud800"}', "M_NOT_JSON"),
        (b'{"a": 01}', "M_NOT_JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "M_NOT_JSON"),
        ('{"a": "ä"}'.encode("utf-16"), "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'"text"', "M_BAD_JSON"),
        (b"null", "M_BAD_JSON"),
        (b"1", "M_BAD_JSON"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "M_BAD_JSON"),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "M_BAD_JSON"),
        (b'{"a":' + b"[" * 4000 + b"]" * 4000 + b"}", "M_NOT_JSON"),
    ],
)
async def test_what_is_no_json_object_is_a_400(router: Router, body: bytes, errcode: str) -> None:
    answer = await put(router, body)
    assert (answer.status, answer.errcode) == (400, errcode)


async def test_depth_up_to_the_limit_and_any_width_is_taken(router: Router) -> None:
    deep = b'{"a":' * 99 + b"1" + b"}" * 99
    assert (await put(router, deep)).status == 200
    wide = b'{"a":[' + b",".join([b"{}"] * 3000) + b"]}"
    assert (await put(router, wide)).status == 200


async def test_of_a_key_that_stands_twice_the_last_value_counts(router: Router) -> None:
    assert (await put(router, b'{"a": 1, "a": 2}')).json == {"a": 2}


async def test_a_declared_length_above_the_limit_is_refused_before_it_is_read(router: Router) -> None:
    async with listening(router, LIMITS) as port:
        started = time.monotonic()
        answer = await raw_request(port, "PUT", PATH, headers={"Content-Length": str(1_000_000_000)})
        assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
        assert answer.headers["connection"] == "close"
        assert time.monotonic() - started < 0.4


async def test_the_limit_is_the_routes(router: Router) -> None:
    body = b'{"a": "' + b"x" * 15_000 + b'"}'
    assert (await put(router, body)).errcode == "M_TOO_LARGE"
    assert (await put(router, body, path="/_matrix/federation/v1/thing")).status == 200


async def test_chunks_without_end_are_cut_at_the_size_limit(router: Router) -> None:
    async with listening(router, LIMITS) as port, connected(port) as (reader, writer):
        writer.write(f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(20):
            writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        answer = await read_answer(reader)
        assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")


@pytest.mark.parametrize("head", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
async def test_a_body_that_drips_is_cut_at_the_time_limit(router: Router, head: str) -> None:
    async with listening(router, LIMITS) as port, connected(port) as (reader, writer):
        writer.write(f"PUT {PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        writer.write(b"1\r\n{\r\n" if "chunked" in head else b"{")
        answer = await read_answer(reader)
        assert answer.status == 408


async def test_a_lying_length_is_no_request(router: Router) -> None:
    async with listening(router, LIMITS) as port:
        async with connected(port) as (_, writer):
            writer.write(f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{}}".encode())
        # Shorter than the body: what is left is no request, and does not become one.
        async with connected(port) as (reader, writer):
            writer.write(
                f"PUT {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}GARBAGE\r\n\r\n".encode()
            )
            assert (await read_answer(reader)).status == 400
            assert await reader.read() == b"", "and the connection ends there"
        assert (await raw_request(port, "PUT", PATH, b"{}")).status == 200


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Content-Length: -1",
    ],
)
async def test_a_length_said_in_two_ways_is_refused(router: Router, lengths: str) -> None:
    async with listening(router, LIMITS) as port:
        head = f"PUT {PATH} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n{{}}".encode()
        assert (await raw_request(port, "PUT", PATH, head=head)).status == 400


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "Multipart/Form-Data", " MULTIPART/mixed"]
)
async def test_a_form_is_no_json_in_any_case_of_letters(router: Router, kind: str) -> None:
    answer = await put(
        router, b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--', {"Content-Type": kind}
    )
    assert (answer.status, answer.errcode) == (400, "M_NOT_JSON")


async def test_labels_do_not_decide(router: Router) -> None:
    # curl labels everything a form; what counts is the body.
    for kind in ("application/x-www-form-urlencoded", "text/plain; charset=utf-16", "nonsense"):
        assert (await put(router, b'{"a": 1}', {"Content-Type": kind})).json == {"a": 1}


async def test_compressed_bodies_are_refused_unread(router: Router) -> None:
    answer = await put(router, b"\x1f\x8b" + b"x" * 100, {"Content-Encoding": "gzip"})
    assert answer.status == 415


async def test_a_body_nobody_reads_does_not_hold_the_connection(router: Router) -> None:
    async with listening(router, LIMITS) as port:
        answer = await raw_request(
            port, "PUT", "/_matrix/client/v3/ignore", headers={"Content-Length": "1000000000"}
        )
        assert answer.json == {"ignored": True}
