"""Other servers' signing keys: fetched, kept, fetched anew when too old, and not asked for too often.

A key is looked for in memory, in the database, at the server itself, and at the notaries of the
configuration. What cannot be found is not asked for again for a while, growing from one minute to an hour.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from federation.clock import NowMs
from federation.keys.published import OwnKeys
from federation.keys.remote import (
    MAX_VALIDITY_MS,
    KeyObjectError,
    check_notary_signature,
    is_usable,
    read_key_object,
)
from federation.outbound.client import FederationClient
from federation.outbound.errors import RemoteError
from federation.storage import keys as storage
from federation.storage.keys import KeyResponse, KeyRow
from federation.turns import Turns
from matrixlib.canonical_json import encode_canonical
from matrixlib.identifiers import is_valid_server_name
from matrixlib.signing import VerifyKey
from servicekit.database import Database
from servicekit.logging import get_logger

log = get_logger("federation.keys")

MAX_SERVERS_IN_MEMORY = 20_000
FETCH_TIMEOUT_S = 10.0
FETCH_MAX_BYTES = 256 * 1024
RETRY_MIN_MS = 60_000
RETRY_MAX_MS = 3_600_000
MAX_CONCURRENT_FETCHES = 60
# Of many times at once so many are looked at between two turns of the loop.
TIMES_A_TURN = 1000


class KeyRing:
    """See the module.

    Args:
        own: our keys; these need no fetching.
        notaries: servers asked when a server itself does not answer.
    """

    def __init__(
        self,
        client: FederationClient,
        database: Database,
        own: OwnKeys,
        notaries: Sequence[str],
        now_ms: NowMs,
    ) -> None:
        self._client = client
        self._database = database
        self._own = own
        self._notaries = [name for name in notaries if name not in own.signing]
        self._now_ms = now_ms
        self._known: OrderedDict[str, dict[str, KeyRow]] = OrderedDict()
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._fetching = Turns()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)

    async def verify_keys(
        self, server_name: str, key_ids: Iterable[str], at_ms: int, *, enforce_validity: bool
    ) -> dict[str, VerifyKey]:
        """Return those of the named keys that may have signed something at a time.

        Fetches when none of them is known or good enough. Never raises for what the network does.

        Args:
            key_ids: of the signatures, like `ed25519:abc`.
            at_ms: when it was signed, by its own account.
            enforce_validity: `valid_until_ts` counts (requests; room versions 5 and later).
        """
        wanted = list(key_ids)
        if server_name in self._own.signing:
            own = self._own.verify_keys(server_name, at_ms)
            return {key_id: own[key_id] for key_id in wanted if key_id in own}
        if not wanted or not is_valid_server_name(server_name):
            return {}
        keys = await self._load(server_name)
        usable = _usable(keys, wanted, at_ms, enforce_validity)
        if not usable and not self._failed_lately(server_name):
            keys = await self._refresh(server_name, wanted, at_ms, enforce_validity)
            usable = _usable(keys, wanted, at_ms, enforce_validity)
        return usable

    async def verify_keys_at(
        self, server_name: str, key_ids: Iterable[str], times_ms: Collection[int], *, enforce_validity: bool
    ) -> dict[int, dict[str, VerifyKey]]:
        """As `verify_keys`, for many times at once: time -> the keys that may have signed something then.

        Fetched is once, if need be, for the latest time, then for the earliest.
        """
        wanted = list(key_ids)
        if server_name in self._own.signing or not wanted or not is_valid_server_name(server_name):
            return {
                at_ms: await self.verify_keys(server_name, wanted, at_ms, enforce_validity=enforce_validity)
                for at_ms in times_ms
            }
        for at_ms in dict.fromkeys((max(times_ms), min(times_ms))):
            await self.verify_keys(server_name, wanted, at_ms, enforce_validity=enforce_validity)
        keys = await self._load(server_name)
        # A room has thousands of times and hardly ever more than one set of keys.
        sets: dict[tuple[str, ...], dict[str, VerifyKey]] = {}
        found: dict[int, dict[str, VerifyKey]] = {}
        for number, at_ms in enumerate(times_ms, 1):
            if number % TIMES_A_TURN == 0:
                await asyncio.sleep(0)
            usable = _usable(keys, wanted, at_ms, enforce_validity)
            found[at_ms] = sets.setdefault(tuple(usable), usable)
        return found

    async def knows(self, server_name: str) -> bool:
        """Whether keys of a server are here, ours among them: nothing is fetched."""
        return server_name in self._own.signing or bool(await self._load(server_name))

    async def all_keys(self, server_name: str) -> list[KeyRow]:
        """Return every key known of a server, fetched if there is none."""
        keys = await self._load(server_name)
        if not keys and not self._failed_lately(server_name):
            keys = await self._refresh(server_name, [], self._now_ms(), True)
        return list(keys.values())

    async def key_response(self, server_name: str, minimum_valid_until_ms: int) -> bytes | None:
        """Return a server's own signed key answer for a notary query; None: there is none to be had."""
        stored = await self._database.read(storage.load_response, server_name)
        now = self._now_ms()
        fresh = (
            stored is not None
            and stored.valid_until_ms >= minimum_valid_until_ms
            and now - stored.fetched_ms <= (stored.valid_until_ms - stored.fetched_ms) // 2
        )
        if not fresh and not self._failed_lately(server_name):
            await self._refresh(server_name, [], min(minimum_valid_until_ms, now + MAX_VALIDITY_MS), True)
            stored = await self._database.read(storage.load_response, server_name)
        return None if stored is None else stored.response_json

    def forget_failure(self, server_name: str) -> None:
        """The server spoke to us: its keys may be fetched again."""
        self._failed.pop(server_name, None)

    # -- inside --------------------------------------------------------------------------------------------

    async def _load(self, server_name: str) -> dict[str, KeyRow]:
        known = self._known.get(server_name)
        if known is None:
            rows = await self._database.read(storage.load_keys, server_name)
            known = {row.key_id: row for row in rows}
            self._remember(server_name, known)
        return known

    def _remember(self, server_name: str, keys: dict[str, KeyRow]) -> None:
        self._known[server_name] = keys
        self._known.move_to_end(server_name)
        if len(self._known) > MAX_SERVERS_IN_MEMORY:
            self._known.popitem(last=False)

    def _failed_lately(self, server_name: str) -> bool:
        failed = self._failed.get(server_name)
        return failed is not None and failed[1] > self._now_ms()

    async def _refresh(
        self, server_name: str, wanted: Sequence[str], at_ms: int, enforce_validity: bool
    ) -> dict[str, KeyRow]:
        """Fetch a server's keys; of several that ask at once, one does it."""
        async with self._fetching.of(server_name):
            keys = await self._load(server_name)
            if wanted and _usable(keys, wanted, at_ms, enforce_validity):
                return keys
            if self._failed_lately(server_name):
                return keys
            async with self._slots:
                rows = await self._fetch(server_name)
            keys = {**keys, **{row.key_id: row for row in rows}}
            self._remember(server_name, keys)
            if rows and (not wanted or _usable(keys, wanted, at_ms, enforce_validity)):
                self._failed.pop(server_name, None)
            else:
                self._note_failure(server_name)
            return keys

    def _note_failure(self, server_name: str) -> None:
        count = self._failed.get(server_name, (0, 0))[0] + 1
        delay = min(RETRY_MIN_MS * 2 ** min(count - 1, 10), RETRY_MAX_MS)
        self._failed[server_name] = (count, self._now_ms() + delay)
        self._failed.move_to_end(server_name)
        if len(self._failed) > MAX_SERVERS_IN_MEMORY:
            self._failed.popitem(last=False)

    async def _fetch(self, server_name: str) -> list[KeyRow]:
        try:
            value = await self._client.get(
                server_name,
                "/_matrix/key/v2/server",
                signed=False,
                timeout_s=FETCH_TIMEOUT_S,
                max_bytes=FETCH_MAX_BYTES,
            )
            return await self._accept(server_name, value)
        except (RemoteError, KeyObjectError) as error:
            log.info("keys_not_fetched", server=server_name, error=str(error))
        for notary in self._notaries:
            if notary == server_name:
                continue
            if server_name in self._notaries and not await self._load(notary):
                # Two that are away would wait for each other's keys for ever.
                continue
            try:
                rows = await self._ask_notary(notary, server_name)
            except (RemoteError, KeyObjectError) as error:
                log.info("notary_failed", server=server_name, notary=notary, error=str(error))
            else:
                if rows:
                    return rows
        return []

    async def _ask_notary(self, notary: str, server_name: str) -> list[KeyRow]:
        notary_keys = {
            row.key_id: VerifyKey(row.key_id, row.public_bytes)
            for row in await self.all_keys(notary)
            if row.expired_ms is None
        }
        answer = await self._client.request(
            notary,
            "POST",
            "/_matrix/key/v2/query",
            content={"server_keys": {server_name: {}}},
            signed=False,
            timeout_s=FETCH_TIMEOUT_S * 2,
            max_bytes=FETCH_MAX_BYTES,
        )
        objects = answer.get("server_keys") if isinstance(answer, dict) else None
        rows: list[KeyRow] = []
        for value in objects if isinstance(objects, list) else []:
            if isinstance(value, dict) and value.get("server_name") == server_name:
                check_notary_signature(value, notary, notary_keys)
                rows.extend(await self._accept(server_name, value))
        return rows

    async def _accept(self, server_name: str, value: Any) -> list[KeyRow]:
        now = self._now_ms()
        rows = read_key_object(value, server_name, now)
        valid_until = max((row.valid_until_ms for row in rows if row.expired_ms is None), default=now)
        response = KeyResponse(encode_canonical(value), now, valid_until)
        known = await self._load(server_name)
        # A known key never changes: another one under its id is a mistake or an attack.
        rows = [row for row in rows if known.get(row.key_id, row).public_bytes == row.public_bytes]

        def store(conn: Any) -> None:
            storage.store_keys(conn, server_name, rows, now)
            storage.store_response(conn, server_name, response)

        await self._database.write(store)
        return rows


def _usable(
    keys: Mapping[str, KeyRow], wanted: Iterable[str], at_ms: int, enforce_validity: bool
) -> dict[str, VerifyKey]:
    return {
        key_id: VerifyKey(key_id, keys[key_id].public_bytes)
        for key_id in wanted
        if key_id in keys and is_usable(keys[key_id], at_ms, enforce_validity=enforce_validity)
    }
