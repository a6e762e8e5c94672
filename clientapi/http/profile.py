"""Profiles (client-server API, "Profiles"), with fields of any name (v1.16)."""

from typing import Any

import orjson

from clientapi.accounts.changes import IN_MEMBER_EVENTS, AccountChanges
from clientapi.http.edge import EMPTY, Edge, check_user_id
from clientapi.rooms.profile_updates import ProfileUpdates
from clientapi.rooms.remote import RemoteRooms
from clientapi.storage import users
from matrixlib.canonical_json import CanonicalJsonError, encode_strict
from matrixlib.identifiers import is_namespaced_identifier, server_name_of
from servicekit.database import Database
from servicekit.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from servicekit.http import Request, Response, Router, json_response

MAX_DISPLAY_NAME_CHARS = 256
MAX_AVATAR_URL_CHARS = 1000
MAX_KEY_BYTES = 255


class ProfileEndpoints:
    """`/profile/{userId}`, `/profile/{userId}/{keyName}`."""

    def __init__(
        self,
        edge: Edge,
        db: Database,
        changes: AccountChanges,
        updates: ProfileUpdates,
        remote: RemoteRooms,
    ) -> None:
        self._edge = edge
        self._db = db
        self._changes = changes
        self._updates = updates
        self._remote = remote

    def add_routes(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/_matrix/client/v3/profile/{user_id}", self.get_profile)
        field = "/_matrix/client/v3/profile/{user_id}/{key_name}"
        unstable = ["/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{key_name}"]
        router.add("GET", field, self.get_field, aliases=unstable)
        router.add("PUT", field, self.put_field, aliases=unstable)
        router.add("DELETE", field, self.delete_field, aliases=unstable)

    async def get_profile(self, request: Request) -> Response:
        """Return a user's whole profile."""
        fields = await self._load(request, "")
        return json_response({name: orjson.loads(value) for name, value in sorted(fields.items())})

    async def get_field(self, request: Request) -> Response:
        """Return one field of a profile."""
        name = request.path_params["key_name"]
        value = (await self._load(request, name)).get(name)
        if value is None:
            if name in IN_MEMBER_EVENTS:
                # Not set: clients of old expect an empty answer.
                return EMPTY
            raise not_found("The profile has no such field")
        return json_response({name: orjson.loads(value)})

    async def _load(self, request: Request, field: str) -> dict[str, bytes]:
        user_id = check_user_id(request.path_params["user_id"])
        fields = None
        if self._edge.config.is_local(server_name_of(user_id)):
            fields = await self._db.read(users.load_profile, user_id)
        elif self._remote.enabled:
            told = await self._remote.profile(user_id, field)
            fields = None if told is None else {name: orjson.dumps(value) for name, value in told.items()}
        if fields is None:
            raise not_found("There is no such profile")
        return fields

    async def put_field(self, request: Request) -> Response:
        """Set a field of one's profile."""
        user_id, name = await self._own_field(request)
        body = await request.json()
        if name not in body:
            raise missing_param(f"Missing {name}")
        value = body[name]
        check_profile_value(name, value)
        if name in IN_MEMBER_EVENTS and value in (None, ""):
            await self._db.write(self._changes.set_profile_field, user_id, name, None)
        else:
            try:
                value_json = encode_strict(value)
            except CanonicalJsonError as error:
                raise bad_json(str(error)) from None
            await self._db.write(self._changes.set_profile_field, user_id, name, value_json)
        self._updates.wake()
        return EMPTY

    async def delete_field(self, request: Request) -> Response:
        """Remove a field of one's profile."""
        user_id, name = await self._own_field(request)
        await self._db.write(self._changes.set_profile_field, user_id, name, None)
        self._updates.wake()
        return EMPTY

    async def _own_field(self, request: Request) -> tuple[str, str]:
        session = await self._edge.authenticate_unsuspended(request)
        user_id, name = request.path_params["user_id"], request.path_params["key_name"]
        if check_user_id(user_id) != session.user_id:
            raise forbidden("This is another user's profile")
        if session.guest and name != "displayname":
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may only change their display name")
        self._edge.profiles.check(session.user_id)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise MatrixError("M_KEY_TOO_LARGE", 400, f"A field's name has at most {MAX_KEY_BYTES} bytes")
        if not is_namespaced_identifier(name):
            raise invalid_param("Not a name for a field of a profile")
        return user_id, name


def check_profile_value(name: str, value: Any) -> None:
    """Check the value of a field of a profile. Raises MatrixError M_BAD_JSON, M_INVALID_PARAM."""
    if name == "displayname":
        if value is not None and not isinstance(value, str):
            raise bad_json("displayname is not a string")
        if value is not None and (len(value) > MAX_DISPLAY_NAME_CHARS or "\0" in value):
            raise invalid_param(f"displayname has at most {MAX_DISPLAY_NAME_CHARS} characters")
    elif name == "avatar_url":
        if value is not None and not isinstance(value, str):
            raise bad_json("avatar_url is not a string")
        if value is not None and len(value) > MAX_AVATAR_URL_CHARS:
            raise invalid_param(f"avatar_url has at most {MAX_AVATAR_URL_CHARS} characters")
    elif name == "m.tz" and not isinstance(value, str):
        raise invalid_param("m.tz is not a string")
