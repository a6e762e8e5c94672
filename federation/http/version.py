"""Who we are, and where: version and well-known."""

from importlib import metadata
from urllib.parse import urlsplit

from servicekit.errors import not_found
from servicekit.http import Request, Response, Router, json_response


class VersionRoutes:
    """`/version` and `/.well-known/matrix/server`.

    Args:
        public_base_url: where this server is reached; only an HTTPS one can be delegated to.
        server_name: the name that the well-known answer would be asked under.
    """

    def __init__(self, public_base_url: str | None, server_name: str) -> None:
        self._delegated = _delegated(public_base_url, server_name)
        self._version = json_response({"server": {"name": "Arbor", "version": metadata.version("arbor")}})

    def add(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/federation/v1/version", self.get_version)
        router.add(
            "GET", "/.well-known/matrix/server", self.get_well_known, resources=["federation", "client"]
        )

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


def _delegated(public_base_url: str | None, server_name: str) -> str | None:
    parts = urlsplit(public_base_url or "")
    if parts.scheme != "https" or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or 443}"
