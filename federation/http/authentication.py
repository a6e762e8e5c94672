"""Who is asking: each request of another server carries a signature over its method, path, query and body."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from federation.clock import NowMs
from federation.keys.ring import KeyRing
from matrixlib.canonical_json import CanonicalJsonError, parse_json
from matrixlib.request_auth import RequestAuthError, XMatrix, parse_authorization_header, verify_request
from matrixlib.signing import VerifyKey
from servicekit.errors import MatrixError, bad_json, limit_exceeded
from servicekit.http import Request

# Whoever claims to be a server that we have never met has us ask that server for its keys. So many such claims of
# one address are looked into at a time; anybody can make them, and the asking takes as long as that server likes.
MAX_STRANGERS = 5
STRANGER_RETRY_MS = 2000


@dataclass(frozen=True, slots=True)
class Caller:
    """A request whose signature is right: who sent it, to which of our names, and its parsed body."""

    origin: str
    destination: str
    content: dict[str, Any]
    """The body; empty where there was none."""


class Authenticator:
    """Checks requests.

    Args:
        is_local: whether a server name is ours.
        local_names: our names; requests that do not say which one they are for may mean any of them.
        on_contact: called with each server that has proved who it is.
    """

    def __init__(
        self,
        ring: KeyRing,
        is_local: Callable[[str], bool],
        local_names: Sequence[str],
        now_ms: NowMs,
        on_contact: Callable[[str], None],
    ) -> None:
        self._ring = ring
        self._is_local = is_local
        self._local_names = tuple(local_names)
        self._now_ms = now_ms
        self._on_contact = on_contact
        self._strangers: Counter[str] = Counter()

    async def authenticate(self, request: Request) -> Caller:
        """Check a request's signature.

        Raises:
            MatrixError: 401 M_UNAUTHORIZED without a right signature, M_NOT_JSON or M_BAD_JSON for the body;
                M_LIMIT_EXCEEDED where too many servers unknown so far are claimed at once.
        """
        header = request.headers.get("Authorization")
        if header is None:
            raise _unauthorized("Missing X-Matrix Authorization header")
        try:
            given = parse_authorization_header(header)
        except RequestAuthError as error:
            raise _unauthorized(f"Unusable Authorization header: {error}") from None
        if given.destination is not None and not self._is_local(given.destination):
            raise _unauthorized("The request is signed for another server")
        if self._is_local(given.origin):
            raise _unauthorized("The request claims to come from this server")
        content = await _content(request)
        key = await self._key(given, request.remote)
        if key is None:
            raise _unauthorized(f"No valid key {given.key_id[:100]} of {given.origin}")
        destination = self._verified(given, key, request, content)
        self._on_contact(given.origin)
        if content is not None and not isinstance(content, dict):
            raise bad_json("The body is not a JSON object")
        return Caller(given.origin, destination, content or {})

    async def _key(self, given: XMatrix, remote: str) -> VerifyKey | None:
        """The key that a request names, if its server has such a one."""
        stranger = not await self._ring.knows(given.origin)
        if stranger:
            if self._strangers[remote] >= MAX_STRANGERS:
                raise limit_exceeded(STRANGER_RETRY_MS)
            self._strangers[remote] += 1
        try:
            keys = await self._ring.verify_keys(
                given.origin, [given.key_id], self._now_ms(), enforce_validity=True
            )
        finally:
            if stranger:
                self._strangers[remote] -= 1
                if not self._strangers[remote]:
                    del self._strangers[remote]
        return keys.get(given.key_id)

    def _verified(self, given: XMatrix, key: VerifyKey, request: Request, content: Any) -> str:
        """Check the signature and return which of our names it is for."""
        # Old servers leave the destination out of the header, not out of what they sign.
        names = self._local_names if given.destination is None else (given.destination,)
        refusal = RequestAuthError("no name to check against")
        for destination in names:
            try:
                verify_request(
                    given,
                    key,
                    method=request.method,
                    uri=request.raw_target,
                    destination=destination,
                    content=content,
                )
            except RequestAuthError as error:
                refusal = error
            else:
                return destination
        raise _unauthorized(str(refusal))


async def _content(request: Request) -> Any:
    body = await request.body()
    if not body:
        return None
    try:
        return parse_json(body)
    except CanonicalJsonError as error:
        raise MatrixError("M_NOT_JSON", 400, f"The body is not JSON: {error}") from None


def _unauthorized(message: str) -> MatrixError:
    return MatrixError("M_UNAUTHORIZED", 401, message)
