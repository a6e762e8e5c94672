"""Health and metrics of a process, and of all processes of a run together.

Every process answers `/health` and `/metrics` on a unix socket of its own in the run directory. A listener
with the resource `metrics` asks all of them and joins the answers, each sample with the label `process`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import aiohttp

from servicekit import metrics
from servicekit.config.schema import Config
from servicekit.errors import MatrixError, not_found
from servicekit.http.messages import Request, Response, json_response
from servicekit.http.routing import Router
from servicekit.service.protocol import Service
from servicekit.service.sockets import SOCKET_SUFFIX, process_sockets

_TIMEOUT = aiohttp.ClientTimeout(total=2.0)

Health = Callable[[], dict[str, str]]


def add_routes(router: Router, config: Config, process: str, health: Health) -> None:
    """Add `/health`, and `/metrics` of all processes.

    Args:
        router: of the process's listeners.
        config: the deployment's.
        process: this process's name.
        health: service -> why it is not well; empty: all are.
    """

    async def answer_metrics(_request: Request) -> Response:
        texts = {process: metrics.exposition().decode()}
        directory = config.socket_path("x").parent
        others = [
            path for path in process_sockets(directory) if path.name != f"{process}{SOCKET_SUFFIX}.sock"
        ]
        for path, text in zip(others, await asyncio.gather(*map(_fetch, others)), strict=True):
            if text is not None:
                texts[path.name.removesuffix(f"{SOCKET_SUFFIX}.sock")] = text
        return Response(join(texts).encode(), content_type=metrics.CONTENT_TYPE)

    router.add("GET", "/metrics", answer_metrics)
    _add_health(router, health)


def own_routes(health: Health, services: Sequence[Service]) -> Router:
    """Return the routes of the process's own socket, which only the server's own user can reach.

    `POST /replay` with `{"service": …, "ids": […]}` has a service apply dead letters again (no ids: all of
    them); the answer is what its `replay` returns.
    """

    async def answer_metrics(_request: Request) -> Response:
        return Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)

    async def answer_replay(request: Request) -> Response:
        body = await request.json()
        for service in services:
            if service.name == body.get("service"):
                replay = getattr(service, "replay", None)
                if replay is None:
                    raise MatrixError("M_UNRECOGNIZED", 501, f"{service.name} cannot replay dead letters")
                return json_response(await replay(list(body.get("ids", []))))
        raise not_found("This process does not run that service")

    router = Router()
    router.add("GET", "/metrics", answer_metrics)
    router.add("POST", "/replay", answer_replay)
    _add_health(router, health)
    return router


def _add_health(router: Router, health: Health) -> None:
    async def answer_health(_request: Request) -> Response:
        troubles = health()
        if troubles:
            return json_response({"status": "unavailable", "services": troubles}, 503)
        return json_response({"status": "ok"})

    router.add("GET", "/health", answer_health)


async def _fetch(path: Path) -> str | None:
    # A process that has just died leaves its socket; the others' metrics come all the same.
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        connector = aiohttp.UnixConnector(path=str(path))
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
            session.get("http://process/metrics") as response,
        ):
            return await response.text()
    return None


def join(texts: dict[str, str]) -> str:
    """Join expositions (process -> text): each family once, each sample with the label `process`."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for process, text in texts.items():
        header: list[str] = []
        samples: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                header, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
            if line.startswith("#"):
                if len(header) < 2:
                    header.append(line)
            elif line:
                samples.append(_labelled(line, process))
    return "".join(f"{line}\n" for lines in _flatten(families.values()) for line in lines)


def _flatten(families: Iterable[tuple[list[str], list[str]]]) -> Iterable[list[str]]:
    for header, samples in families:
        yield header
        yield samples


def _labelled(sample: str, process: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{process="{process}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{process="{process}"}} {value}'
