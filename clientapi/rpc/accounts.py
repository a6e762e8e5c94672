"""`arbor.accounts.v1.AccountsService`."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import orjson
from sqlalchemy import Connection

from arbor.accounts.v1 import accounts_pb2, accounts_pb2_grpc
from arbor.log.v1 import output_pb2
from clientapi.accounts.registration import Registration, in_use
from clientapi.accounts.registration_tokens import RegistrationTokens
from clientapi.accounts.sessions import Sessions, hash_token
from clientapi.accounts.tell import account_changed, account_data_changed, device_changed, room_forgotten
from clientapi.clock import Clock
from clientapi.rooms.parts import Rooms
from clientapi.storage import directory, room_tasks, settings, short_tokens, users
from clientapi.storage.invite_permission import load_who_blocks_invites
from clientapi.storage.outbox import last_told_sequence
from clientapi.storage.registration_tokens import RegistrationToken
from matrixlib.identifiers import server_name_of
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import invalid_param, not_found, unknown_token
from servicekit.log.subjects import subject_of

Context = grpc.aio.ServicerContext[Any, Any]
EXPORT_ENTRIES = 200


class AccountsServicer(accounts_pb2_grpc.AccountsServiceServicer):
    """See the module."""

    def __init__(
        self,
        config: Config,
        db: Database,
        sessions: Sessions,
        registration: Registration,
        registration_tokens: RegistrationTokens,
        rooms: Rooms,
        clock: Clock,
    ) -> None:
        self._config = config
        self._db = db
        self._sessions = sessions
        self._registration = registration
        self._registration_tokens = registration_tokens
        self._rooms = rooms
        self._clock = clock

    async def ResolveToken(  # noqa: N802 - the contract's name
        self, request: accounts_pb2.ResolveTokenRequest, context: Context
    ) -> accounts_pb2.ResolveTokenResponse:
        """Say whose access token it is."""
        session = await self._sessions.resolve(request.access_token)
        return accounts_pb2.ResolveTokenResponse(
            user_id=session.user_id,
            device_id=session.device_id,
            guest=session.guest,
            admin=session.admin,
            expires_ms=session.expires_ms or 0,
            suspended=session.suspended,
        )

    async def QueryProfiles(  # noqa: N802
        self, request: accounts_pb2.QueryProfilesRequest, context: Context
    ) -> accounts_pb2.QueryProfilesResponse:
        """Return profiles of local users that exist."""
        found, blocking, erased = await self._db.read(_load_profiles, list(request.user_ids))
        return accounts_pb2.QueryProfilesResponse(
            profiles=[
                accounts_pb2.Profile(
                    user_id=user_id,
                    fields_json=orjson.dumps({name: orjson.loads(value) for name, value in fields.items()}),
                    blocks_invites=user_id in blocking,
                    erased=user_id in erased,
                )
                for user_id, fields in found.items()
            ]
        )

    async def QueryDevices(  # noqa: N802
        self, request: accounts_pb2.QueryDevicesRequest, context: Context
    ) -> accounts_pb2.QueryDevicesResponse:
        """Return devices of local users."""
        found = await self._db.read(users.load_devices, list(request.user_ids))
        return accounts_pb2.QueryDevicesResponse(
            devices=[
                accounts_pb2.Device(
                    user_id=device.user_id, device_id=device.device_id, display_name=device.display_name
                )
                for device in found
            ]
        )

    async def QueryFilter(  # noqa: N802
        self, request: accounts_pb2.QueryFilterRequest, context: Context
    ) -> accounts_pb2.QueryFilterResponse:
        """Return a stored filter."""
        filter_json = await self._db.read(settings.load_filter, request.user_id, request.filter_id)
        if filter_json is None:
            raise not_found("There is no such filter")
        return accounts_pb2.QueryFilterResponse(filter_json=filter_json)

    async def QueryAliases(  # noqa: N802
        self, request: accounts_pb2.QueryAliasesRequest, context: Context
    ) -> accounts_pb2.QueryAliasesResponse:
        """Resolve aliases, or list those of rooms."""
        rows = await self._db.read(directory.load_aliases, list(request.aliases), list(request.room_ids))
        return accounts_pb2.QueryAliasesResponse(
            aliases=[
                accounts_pb2.Alias(alias=row.alias, room_id=row.room_id, creator=row.creator) for row in rows
            ]
        )

    async def QueryBlockedRooms(  # noqa: N802
        self, request: accounts_pb2.QueryBlockedRoomsRequest, context: Context
    ) -> accounts_pb2.QueryBlockedRoomsResponse:
        """Say which rooms are blocked."""
        found = await self._db.read(room_tasks.load_blocked, list(request.room_ids))
        return accounts_pb2.QueryBlockedRoomsResponse(room_ids=found)

    async def QueryOpenIdToken(  # noqa: N802
        self, request: accounts_pb2.QueryOpenIdTokenRequest, context: Context
    ) -> accounts_pb2.QueryOpenIdTokenResponse:
        """Say whose OpenID token it is."""
        token_hash = hash_token(request.token)
        user_id = await self._db.read(short_tokens.load_openid_user, token_hash, self._clock())
        if user_id is None:
            raise unknown_token()
        return accounts_pb2.QueryOpenIdTokenResponse(user_id=user_id)

    async def ListPublicRooms(  # noqa: N802
        self, request: accounts_pb2.ListPublicRoomsRequest, context: Context
    ) -> accounts_pb2.ListPublicRoomsResponse:
        """Return a page of the directory."""
        page = await self._rooms.public_rooms.page(
            request.limit or None,
            request.since or None,
            request.search_term or None,
            [kind or None for kind in request.room_types] if request.by_room_type else None,
        )
        return accounts_pb2.ListPublicRoomsResponse(
            rooms_json=[orjson.dumps(room) for room in page.chunk],
            total=page.total,
            next_batch=page.next_batch or "",
            prev_batch=page.prev_batch or "",
        )

    async def RedeemThirdPartyInvite(  # noqa: N802
        self, request: accounts_pb2.RedeemThirdPartyInviteRequest, context: Context
    ) -> accounts_pb2.RedeemThirdPartyInviteResponse:
        """Invite whom a third-party invite was bound to, in the name of the local user who made it."""
        if not self._config.is_local(server_name_of(request.sender)):
            raise invalid_param("Not a user of this server")
        invite = orjson.loads(request.third_party_invite_json)
        sent = await self._rooms.memberships.invite(
            request.sender, request.room_id, request.user_id, {"third_party_invite": invite}
        )
        return accounts_pb2.RedeemThirdPartyInviteResponse(event_id=sent.event_id)

    async def CreateUser(  # noqa: N802
        self, request: accounts_pb2.CreateUserRequest, context: Context
    ) -> accounts_pb2.CreateUserResponse:
        """Make an account for the operator."""
        username, server_name = request.username, self._config.server_names[0]
        if username.startswith("@"):
            server_name = server_name_of(username)
            if not self._config.is_local(server_name):
                raise invalid_param(f"Accounts are made on {', '.join(self._config.server_names)}")
            username = username[1:].partition(":")[0]
        user_id = self._registration.user_id_of(username, server_name)
        password = None
        if request.password:
            password = self._registration.check_new_password(request.password)
        if await self._db.read(users.user_exists, user_id):
            raise in_use()
        await self._registration.register(user_id, password, None, None, admin=request.admin)
        return accounts_pb2.CreateUserResponse(user_id=user_id)

    async def CreateRegistrationToken(  # noqa: N802
        self, request: accounts_pb2.CreateRegistrationTokenRequest, context: Context
    ) -> accounts_pb2.CreateRegistrationTokenResponse:
        """Make a registration token for the operator."""
        token = await self._registration_tokens.create(
            request.token or None,
            uses_allowed=request.uses_allowed if request.HasField("uses_allowed") else None,
            expires_ms=request.expires_ms or None,
        )
        return accounts_pb2.CreateRegistrationTokenResponse(token=_registration_token(token))

    async def ListRegistrationTokens(  # noqa: N802
        self, request: accounts_pb2.ListRegistrationTokensRequest, context: Context
    ) -> accounts_pb2.ListRegistrationTokensResponse:
        """List registration tokens."""
        found = await self._registration_tokens.list_all()
        return accounts_pb2.ListRegistrationTokensResponse(tokens=map(_registration_token, found))

    async def DeleteRegistrationToken(  # noqa: N802
        self, request: accounts_pb2.DeleteRegistrationTokenRequest, context: Context
    ) -> accounts_pb2.DeleteRegistrationTokenResponse:
        """Delete a registration token."""
        await self._registration_tokens.delete(request.token)
        return accounts_pb2.DeleteRegistrationTokenResponse()

    async def Export(  # noqa: N802
        self, request: accounts_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[accounts_pb2.ExportResponse]:
        """Return what readers keep of every account, as messages without a number, and how far it is
        complete.

        What changes meanwhile is told on the log after `complete_through`, so that following from there
        misses nothing.
        """
        through = await self._db.read(last_told_sequence)
        partitions = self._config.log.partitions
        for kind, user_id, entries in await self._db.read(_load_export):
            message = output_pb2.OutputMessage(user_id=user_id, created_ms=self._clock(), entries=entries)
            yield accounts_pb2.ExportResponse(
                message=message.SerializeToString(), subject=subject_of(kind, user_id, partitions)
            )
        yield accounts_pb2.ExportResponse(complete_through=through)


def _load_profiles(
    conn: Connection, user_ids: list[str]
) -> tuple[dict[str, dict[str, bytes]], set[str], dict[str, int]]:
    return (
        users.load_profiles(conn, user_ids),
        load_who_blocks_invites(conn, user_ids),
        users.load_erased(conn, user_ids),
    )


def _registration_token(token: RegistrationToken) -> accounts_pb2.RegistrationToken:
    return accounts_pb2.RegistrationToken(
        token=token.token,
        uses_allowed=token.uses_allowed,
        pending=token.pending,
        completed=token.completed,
        expires_ms=token.expires_ms or 0,
    )


_Exported = tuple[str, str, list[output_pb2.OutputEntry]]


def _load_export(conn: Connection) -> list[_Exported]:
    """Return (subject kind, user, entries) of everything, at most `EXPORT_ENTRIES` a piece."""
    pieces: list[_Exported] = []

    def add(kind: str, items: Iterator[tuple[str, output_pb2.OutputEntry]]) -> None:
        for user_id, entry in items:
            last = pieces[-1] if pieces else None
            if last is None or last[0] != kind or last[1] != user_id or len(last[2]) >= EXPORT_ENTRIES:
                last = (kind, user_id, [])
                pieces.append(last)
            last[2].append(entry)

    add(
        "user.account_data",
        (
            (user_id, account_data_changed(room_id, type_, content_json))
            for user_id, room_id, type_, content_json in settings.iterate_account_data(conn)
        ),
    )
    add(
        "user.account_data",
        ((user_id, room_forgotten(room_id)) for user_id, room_id in settings.iterate_forgotten(conn)),
    )
    add(
        "user.device",
        (
            (device.user_id, device_changed(device.device_id, device.display_name))
            for device in users.iterate_devices(conn)
        ),
    )
    add(
        "user.device",
        (
            (user_id, account_changed(erased_ms=erased_ms))
            for user_id, erased_ms in users.load_erased(conn).items()
        ),
    )
    return pieces
