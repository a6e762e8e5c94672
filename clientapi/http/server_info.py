"""What a client asks about the server: versions, capabilities, well-known; features that are off."""

from typing import Any

import msgspec

from clientapi.http.edge import Edge
from matrixlib.room_versions import ROOM_VERSIONS
from servicekit.errors import MatrixError, not_found
from servicekit.http import Request, Response, Router, json_response

# Clients look for exact strings, so every release since v1.1 is listed, and the last of the r0 line.
VERSIONS = ["r0.5.0", "r0.6.0", "r0.6.1", *(f"v1.{minor}" for minor in range(1, 20))]

UNSTABLE_FEATURES = {
    # state_after in /sync: stable since v1.16, but SDKs still use the old spelling.
    "org.matrix.msc4222": True,
    # Long in the specification; clients still look for the flags.
    "com.beeper.msc4169": True,
    "org.matrix.msc2285.stable": True,
    "org.matrix.msc3440.stable": True,
    "org.matrix.msc3715.stable": True,
    "org.matrix.msc3771": True,
    "org.matrix.msc3773": True,
    "org.matrix.msc3827.stable": True,
    "org.matrix.msc3856.stable": True,
    "org.matrix.msc3981": True,
    "org.matrix.msc4380.stable": True,
    "uk.half-shot.msc2666.query_mutual_rooms": True,
    "uk.half-shot.msc2666.query_mutual_rooms.stable": True,
    "uk.tcpip.msc4133": True,
    "uk.tcpip.msc4133.stable": True,
}


class ServerInfoEndpoints:
    """`/versions`, `/capabilities`, `/.well-known/matrix/…`, `/voip/turnServer`, `/thirdparty/protocols`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._versions = json_response({"versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES})

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/versions", self.get_versions)
        router.add("GET", "/_matrix/client/v3/capabilities", self.get_capabilities)
        router.add("GET", "/.well-known/matrix/client", self.get_well_known)
        router.add("GET", "/.well-known/matrix/support", self.get_support)
        router.add("GET", "/_matrix/client/v3/voip/turnServer", self.get_turn_server)
        router.add("GET", "/_matrix/client/v3/thirdparty/protocols", self.get_protocols)
        for kind in ("location", "user"):
            router.add("GET", f"/_matrix/client/v3/thirdparty/{kind}", self.get_no_bridged)
            router.add("GET", f"/_matrix/client/v3/thirdparty/{kind}/{{protocol}}", self.get_no_protocol)
        router.add("GET", "/_matrix/client/v3/thirdparty/protocol/{protocol}", self.get_no_protocol)
        router.add("GET", "/_matrix/client/v3/room_keys/version", self.get_backup_version)
        router.add(
            "GET",
            "/_matrix/client/v1/rtc/transports",
            self.get_rtc_transports,
            aliases=["/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"],
        )

    async def get_versions(self, request: Request) -> Response:
        """List versions of the specification."""
        return self._versions

    async def get_capabilities(self, request: Request) -> Response:
        """Say what the server can do for the user."""
        session = await self._edge.authenticate(request)
        config = self._edge.config
        capabilities: dict[str, Any] = {
            "m.change_password": {"enabled": config.passwords.enabled},
            "m.room_versions": {
                "default": config.rooms.default_version,
                "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
            },
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.profile_fields": {"enabled": True},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": config.passwords.enabled},
            "m.forget_forced_upon_leave": {"enabled": False},
        }
        if session.admin:
            capabilities["m.account_moderation"] = {"lock": True, "suspend": True}
        return json_response({"capabilities": capabilities})

    async def get_well_known(self, request: Request) -> Response:
        """Say where clients find this server."""
        base_url = self._edge.config.public_base_url
        if base_url is None:
            raise not_found("No base URL is configured")
        return json_response({"m.homeserver": {"base_url": base_url}})

    async def get_support(self, request: Request) -> Response:
        """Say whom to ask for help."""
        support = self._edge.config.support
        if not support.contacts and support.support_page is None:
            raise not_found("No contact is configured")
        answer: dict[str, Any] = {}
        if support.contacts:
            answer["contacts"] = [
                {key: value for key, value in msgspec.structs.asdict(contact).items() if value}
                for contact in support.contacts
            ]
        if support.support_page is not None:
            answer["support_page"] = support.support_page
        return json_response(answer)

    async def get_turn_server(self, request: Request) -> Response:
        """Give credentials of a TURN server: there is none."""
        await self._edge.authenticate(request)
        return json_response({})

    async def get_protocols(self, request: Request) -> Response:
        """List bridged networks: there are none."""
        await self._edge.authenticate(request)
        return json_response({})

    async def get_no_bridged(self, request: Request) -> Response:
        """List what stands for a room or user in bridged networks: nothing."""
        await self._edge.authenticate(request)
        return json_response([])

    async def get_no_protocol(self, request: Request) -> Response:
        """Describe a bridged network: there is none."""
        await self._edge.authenticate(request)
        raise not_found("There is no such network here")

    async def get_backup_version(self, request: Request) -> Response:
        """Return the user's key backup: there is none."""
        await self._edge.authenticate(request)
        raise not_found("No backup found")

    async def get_rtc_transports(self, request: Request) -> Response:
        """List transports for calls. Not `{}`, which clients take for "calls cannot work"."""
        raise MatrixError("M_UNRECOGNIZED", 404, "Unrecognized request")
