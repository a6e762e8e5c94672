"""Who we are, and where: version and well-known."""

from importlib import metadata
from urllib.parse import urlsplit

from federation.http.endpoints import Endpoint
from servicekit.errors import not_found
from servicekit.http import Request, Response, json_response


class VersionRoutes:
    """`/version` and `/.well-known/matrix/server`.

    Args:
        public_base_url: where this server is reached; only an HTTPS one can be delegated to.
    """

    ENDPOINTS = (
        Endpoint("GET", "/_matrix/federation/v1/version", "get_version", signed=False),
        Endpoint(
            "GET",
            "/.well-known/matrix/server",
            "get_well_known",
            signed=False,
            resources=("federation", "client"),
        ),
    )

    def __init__(self, public_base_url: str | None) -> None:
        self._delegated = _delegated(public_base_url)
        self._version = json_response({"server": {"name": "Arbor", "version": metadata.version("arbor")}})

    async def get_version(self, request: Request) -> Response:
        """GET /_matrix/federation/v1/version."""
        return self._version

    async def get_well_known(self, request: Request) -> Response:
        """GET /.well-known/matrix/server: only where there is something to say."""
        if self._delegated is None:
            raise not_found("This server is not delegated")
        return json_response(
            {"m.server": self._delegated}, headers={"Cache-Control": "public, max-age=86400"}
        )


def _delegated(public_base_url: str | None) -> str | None:
    parts = urlsplit(public_base_url or "")
    if parts.scheme != "https" or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or 443}"
