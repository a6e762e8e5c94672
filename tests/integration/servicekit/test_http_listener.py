"""A listener over real sockets: what all responses have in common, and what handlers need not care for."""

import asyncio
import logging
import ssl
from pathlib import Path

import aiohttp
import msgspec
import pytest

from servicekit.config.schema import Http, Listener, ListenerTls
from servicekit.errors import MatrixError
from servicekit.http import HttpListener, Request, Response, Route, Router, json_response
from servicekit.service.listeners import bind_listener, tls_context
from tests.support.http_listener import connected, listening, raw_request, read_answer


class Body(msgspec.Struct):
    """A request body."""

    name: str
    count: int = 0


async def echo(request: Request) -> Response:
    return json_response(
        {
            "params": request.path_params,
            "query": request.query,
            "via": request.query_all("via"),
            "token": request.access_token,
            "remote": request.remote,
            "target": request.raw_target,
        }
    )


async def body(request: Request) -> Response:
    return json_response(await request.json())


async def struct(request: Request) -> Response:
    parsed = await request.struct(Body)
    return json_response({"name": parsed.name, "count": parsed.count})


async def private(request: Request) -> Response:
    return json_response({"token": request.require_access_token()})


async def refuse(_request: Request) -> Response:
    raise MatrixError("M_LIMIT_EXCEEDED", 429, "Slowly", 1500, extra={"more": 1})


async def crash(_request: Request) -> Response:
    raise RuntimeError("the password is hunter2")


async def pieces(_request: Request) -> Response:
    async def give():
        yield b"a" * 10
        yield b"b" * 10

    return Response(give(), content_type="text/plain")


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/_matrix/client/v3/echo/{word}", echo)
    router.add("PUT", "/_matrix/client/v3/body", body)
    router.add("PUT", "/_matrix/client/v3/struct", struct)
    router.add("GET", "/_matrix/client/v3/private", private)
    router.add("GET", "/_matrix/client/v3/refuse", refuse)
    router.add("GET", "/_matrix/client/v3/crash", crash)
    router.add("GET", "/_matrix/client/v3/pieces", pieces)
    return router


BASE = "/_matrix/client/v3"


async def test_every_response_has_cors_and_json(router: Router) -> None:
    async with listening(router) as port:
        for method, path, status in (
            ("GET", f"{BASE}/echo/x", 200),
            ("GET", f"{BASE}/refuse", 429),
            ("GET", f"{BASE}/crash", 500),
            ("GET", f"{BASE}/nothing", 404),
            ("DELETE", f"{BASE}/echo/x", 405),
            ("OPTIONS", f"{BASE}/echo/x", 204),
        ):
            answer = await raw_request(port, method, path)
            assert answer.status == status, path
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "PUT" in answer.headers["access-control-allow-methods"]
            assert "Authorization" in answer.headers["access-control-allow-headers"]
            if status != 204:
                assert answer.headers["content-type"] == "application/json"


async def test_unknown_path_and_unknown_method(router: Router) -> None:
    async with listening(router) as port:
        unknown = await raw_request(port, "GET", "/_matrix/nothing")
        assert (unknown.status, unknown.errcode) == (404, "M_UNRECOGNIZED")
        method = await raw_request(port, "POST", f"{BASE}/echo/x")
        assert (method.status, method.errcode) == (405, "M_UNRECOGNIZED")
        assert method.headers["allow"] == "GET, OPTIONS"
        head = await raw_request(port, "HEAD", f"{BASE}/echo/x")
        assert (head.status, head.body) == (200, b"")


async def test_an_error_keeps_errcode_retry_time_and_extra_keys(router: Router) -> None:
    async with listening(router) as port:
        answer = await raw_request(port, "GET", f"{BASE}/refuse")
        assert answer.json == {
            "errcode": "M_LIMIT_EXCEEDED",
            "error": "Slowly",
            "retry_after_ms": 1500,
            "more": 1,
        }
        assert answer.headers["retry-after"] == "2"


async def test_a_bug_is_a_500_that_tells_nothing_and_a_log_line_that_tells_all(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(router) as port:
        with caplog.at_level(logging.ERROR):
            answer = await raw_request(port, "GET", f"{BASE}/crash?access_token=abc")
    assert answer.json == {"errcode": "M_UNKNOWN", "error": "Internal server error"}
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.fields["path"] == f"{BASE}/crash"


async def test_query_and_tokens(router: Router) -> None:
    async with listening(router) as port:
        target = f"{BASE}/echo/a%2Fb?via=x&via=y+z&empty=&access_token=old%20token"
        value = (await raw_request(port, "GET", target)).json
        assert value["params"] == {"word": "a/b"}
        assert value["via"] == ["x", "y z"]
        assert value["query"]["empty"] == ""
        assert value["token"] == "old token"
        assert value["target"] == target
        with_header = await raw_request(port, "GET", target, headers={"Authorization": "bearer new"})
        assert with_header.json["token"] == "new", "the header goes before the query"
        other = await raw_request(port, "GET", f"{BASE}/echo/x", headers={"Authorization": "Basic abc"})
        assert other.json["token"] is None
        bad = await raw_request(port, "GET", f"{BASE}/echo/x?a=%ff")
        assert (bad.status, bad.errcode) == (400, "M_INVALID_PARAM")
        missing = await raw_request(port, "GET", f"{BASE}/private")
        assert (missing.status, missing.errcode) == (401, "M_MISSING_TOKEN")


async def test_the_absolute_form_of_a_target_is_understood(router: Router) -> None:
    async with listening(router) as port:
        answer = await raw_request(port, "GET", f"http://host:1{BASE}/echo/x?a=1")
        assert answer.json["target"] == f"{BASE}/echo/x?a=1"


async def test_forwarded_addresses_are_believed_only_when_told_to(router: Router) -> None:
    headers = {"X-Forwarded-For": "6.6.6.6, 10.1.2.3"}
    async with listening(router) as port:
        assert (await raw_request(port, "GET", f"{BASE}/echo/x", headers=headers)).json[
            "remote"
        ] == "127.0.0.1"
    async with listening(router, trust_forwarded=True) as port:
        assert (await raw_request(port, "GET", f"{BASE}/echo/x", headers=headers)).json[
            "remote"
        ] == "10.1.2.3"


async def test_bodies_as_structs(router: Router) -> None:
    async with listening(router) as port:
        good = await raw_request(port, "PUT", f"{BASE}/struct", b'{"name": "x", "unknown": [1]}')
        assert good.json == {"name": "x", "count": 0}
        wrong = await raw_request(port, "PUT", f"{BASE}/struct", b'{"name": "x", "count": "1"}')
        assert (wrong.status, wrong.errcode) == (400, "M_BAD_JSON")
        assert "count" in wrong.json["error"]


async def test_connections_are_kept_and_streams_are_sent(router: Router) -> None:
    async with listening(router) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get(f"{BASE}/pieces") as response:
            assert await response.read() == b"a" * 10 + b"b" * 10
        for number in range(3):
            async with session.put(f"{BASE}/body", data=b'{"n": %d}' % number) as response:
                assert await response.json() == {"n": number}
        assert session.connector is not None
        assert len(session.connector._conns) == 1, "one connection served all"


async def test_pipelined_requests_are_answered_in_order(router: Router) -> None:
    async with listening(router) as port, connected(port) as (reader, writer):
        for number in range(5):
            writer.write(f"GET {BASE}/echo/{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for number in range(5):
            assert (await read_answer(reader)).json["params"] == {"word": str(number)}


async def test_requests_wait_for_a_service_that_starts(router: Router) -> None:
    started = asyncio.Event()

    async def ready(_route: Route) -> bool:
        await started.wait()
        return True

    async def never(_route: Route) -> bool:
        return False

    async with listening(router, ready=ready) as port:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(raw_request(port, "GET", f"{BASE}/echo/x"))
            assert (await raw_request(port, "GET", "/nothing")).status == 404
            assert not waiting.done()
            started.set()
        assert waiting.result().status == 200
    async with listening(router, ready=never) as port:
        answer = await raw_request(port, "GET", f"{BASE}/echo/x")
        assert (answer.status, answer.json["retry_after_ms"]) == (503, 1000)


async def test_a_long_poll_ends_when_its_client_goes_away() -> None:
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def poll(_request: Request) -> Response:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    router = Router()
    router.add("GET", "/poll", poll, cancel_on_disconnect=True)
    async with listening(router) as port:
        async with connected(port) as (_, writer):
            writer.write(b"GET /poll HTTP/1.1\r\nHost: x\r\n\r\n")
            await waiting.wait()
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_more_connections_than_allowed_are_cut(router: Router) -> None:
    async with listening(router, Http(max_connections=1)) as port, connected(port) as (reader, writer):
        writer.write(f"GET {BASE}/echo/x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await read_answer(reader)).status == 200
        with pytest.raises((ConnectionError, IndexError)):
            await raw_request(port, "GET", f"{BASE}/echo/x")


async def test_stopping_lets_requests_finish(router: Router) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request) -> Response:
        entered.set()
        await leave.wait()
        return json_response({"done": True})

    router.add("GET", "/slow", slow)
    listener = HttpListener(router)
    sock = bind_listener(Listener(port=0), 0)
    await listener.start(sock)
    port = sock.getsockname()[1]
    async with asyncio.TaskGroup() as group:
        request = group.create_task(raw_request(port, "GET", "/slow"))
        await entered.wait()
        stopping = group.create_task(listener.stop(10))
        await asyncio.sleep(0)
        leave.set()
    assert request.result().json == {"done": True}
    assert stopping.done()
    with pytest.raises(ConnectionRefusedError):
        await raw_request(port, "GET", "/slow")


async def test_tls(router: Router, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    listener = Listener(port=0, tls=ListenerTls(certificate_path=certificate, private_key_path=key))
    http = HttpListener(router)
    sock = bind_listener(listener, 0)
    await http.start(sock, tls_context(listener, 0))
    trust = ssl.create_default_context(cafile=str(certificate))
    async with aiohttp.ClientSession() as session:
        url = f"https://localhost:{sock.getsockname()[1]}{BASE}/echo/x"
        async with session.get(url, ssl=trust) as response:
            assert (await response.json())["params"] == {"word": "x"}
    await http.stop(1)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for localhost and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / "tls.crt", directory / "tls.key"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path
