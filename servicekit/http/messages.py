"""What a handler gets and gives."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import orjson
from aiohttp import web

from servicekit.errors import MatrixError, bad_json, invalid_param, missing_token
from servicekit.http.json_bodies import parse_json_object
from servicekit.http.routing import Route

T = TypeVar("T")

JSON_TYPE = "application/json"


class Response:
    """An answer: status, body and headers. Make JSON ones with `json_response`.

    Args:
        body: the bytes, or an iterator that gives them piece by piece.
        status: of HTTP.
        headers: further ones; CORS and the like are added by the server.
        content_type: of the body.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        body: bytes | AsyncIterator[bytes] = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = JSON_TYPE,
    ) -> None:
        self.body = body
        self.status = status
        self.headers = headers
        self.content_type = content_type


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer of a value, or of bytes that are JSON already."""
    return Response(value if isinstance(value, bytes) else orjson.dumps(value), status, headers)


class Request:
    """A request to a route.

    Attributes:
        method: `GET` and so on.
        path: raw path, as sent.
        path_params: name -> decoded value.
        route: the route that matched.
        request_id: id of the request in logs.
        remote: address of the client.
    """

    __slots__ = (
        "_base",
        "_body",
        "_max_body",
        "_query",
        "_raw_query",
        "_timeout_s",
        "method",
        "path",
        "path_params",
        "remote",
        "request_id",
        "route",
    )

    def __init__(
        self,
        base: web.BaseRequest,
        route: Route,
        path: str,
        raw_query: str,
        path_params: dict[str, str],
        remote: str,
        request_id: str,
        max_body: int,
        timeout_s: float,
    ) -> None:
        self._base = base
        self.method = base.method
        self.route = route
        self.path = path
        self._raw_query = raw_query
        self.path_params = path_params
        self.remote = remote
        self.request_id = request_id
        self._max_body = max_body
        self._timeout_s = timeout_s
        self._query: dict[str, list[str]] | None = None
        self._body: bytes | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers; names are looked up in any case."""
        return self._base.headers

    @property
    def raw_target(self) -> str:
        """Path and query as sent: what a federation signature covers."""
        return f"{self.path}?{self._raw_query}" if self._raw_query else self.path

    @property
    def query(self) -> dict[str, str]:
        """Query parameters, of a repeated one the first value.

        Raises:
            MatrixError: they are not percent-encoded UTF-8 (400 M_INVALID_PARAM).
        """
        return {name: values[0] for name, values in self._parsed_query().items()}

    def query_all(self, name: str) -> list[str]:
        """Return every value of a query parameter that may be repeated, such as `via`."""
        return list(self._parsed_query().get(name, ()))

    def query_int(self, name: str, default: int, *, minimum: int = 0, maximum: int | None = None) -> int:
        """Return a whole number from the query, or the default; above `maximum` it is the maximum.

        Raises:
            MatrixError: it is no whole number or below the minimum (400 M_INVALID_PARAM).
        """
        values = self._parsed_query().get(name)
        if values is None:
            return default
        text = values[0]
        if (
            not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20)
            or int(text) < minimum
        ):
            raise invalid_param(f"The query parameter {name} must be a whole number of at least {minimum}")
        return int(text) if maximum is None else min(int(text), maximum)

    def query_bool(self, name: str, default: bool = False) -> bool:
        """Return a truth value from the query.

        Raises:
            MatrixError: it is neither `true` nor `false` (400 M_INVALID_PARAM).
        """
        values = self._parsed_query().get(name)
        if values is None:
            return default
        if values[0] not in ("true", "false"):
            raise invalid_param(f"The query parameter {name} must be true or false")
        return values[0] == "true"

    @property
    def access_token(self) -> str | None:
        """The access token, from the header or, as old clients send it, from the query; None: there is
        none.
        """
        header = self._base.headers.get("Authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            return token.strip() or None if scheme.lower() == "bearer" else None
        if "access_token" not in self._raw_query:
            return None
        values = self._parsed_query().get("access_token")
        return values[0] or None if values else None

    def require_access_token(self) -> str:
        """Return the access token.

        Raises:
            MatrixError: there is none (401 M_MISSING_TOKEN).
        """
        token = self.access_token
        if token is None:
            raise missing_token()
        return token

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            MatrixError: it is larger than the route allows (413 M_TOO_LARGE) or comes too slowly (408).
        """
        if self._body is None:
            self._body = await self._read_body()
        return self._body

    async def _read_body(self) -> bytes:
        base = self._base
        if not base.can_read_body:
            return b""
        if base.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise MatrixError("M_UNKNOWN", 415, "Compressed bodies are not taken")
        length = base.content_length
        if length is not None and length > self._max_body:
            raise self._too_large()
        content = base.content
        if length is not None and content.is_eof() and content.total_bytes == length:
            # All of it is here: no timer, no loop.
            return content.read_nowait()
        pieces = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in content.iter_any():
                    pieces += piece
                    if len(pieces) > self._max_body:
                        raise self._too_large()
        except TimeoutError:
            raise MatrixError("M_UNKNOWN", 408, "The body did not come in time") from None
        except web.RequestPayloadError:
            raise MatrixError("M_NOT_JSON", 400, "The body is malformed") from None
        return bytes(pieces)

    def _too_large(self) -> MatrixError:
        return MatrixError("M_TOO_LARGE", 413, f"The body is larger than {self._max_body} bytes")

    def stream(self) -> AsyncIterator[bytes]:
        """Return the body piece by piece, for uploads; the caller counts the bytes and the time."""
        return self._base.content.iter_chunked(65536).__aiter__()

    async def json(self, *, allow_empty: bool = False) -> dict[str, Any]:
        """Return the body's JSON object. With `allow_empty` an empty body is an empty object.

        Raises:
            MatrixError: M_NOT_JSON, M_BAD_JSON, M_TOO_LARGE, or 408 for a body that does not come.
        """
        content_type = self._base.headers.get("Content-Type", "")
        # Labels are not checked, since many clients send wrong ones; but a form is no JSON, whatever its
        # size.
        if content_type and content_type.lstrip()[:10].lower() == "multipart/":
            raise MatrixError("M_NOT_JSON", 400, "The body is not JSON")
        data = await self.body()
        if not data and allow_empty:
            return {}
        return parse_json_object(data)

    async def struct(self, kind: type[T], *, allow_empty: bool = False) -> T:
        """Return the body's JSON object as a msgspec struct (or other type that msgspec knows).

        Raises:
            MatrixError: as `json` does; a wrong type or missing key is M_BAD_JSON with its path.
        """
        return convert_json(await self.json(allow_empty=allow_empty), kind)

    def _parsed_query(self) -> dict[str, list[str]]:
        if self._query is None:
            self._query = parse_query(self._raw_query) if self._raw_query else {}
        return self._query


def convert_json(value: Any, kind: type[T]) -> T:
    """Return parsed JSON as a msgspec struct.

    Raises:
        MatrixError: a wrong type or missing key (400 M_BAD_JSON, with its path).
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise bad_json(str(error)) from None


def parse_query(raw: str) -> dict[str, list[str]]:
    """Return the parameters of a raw query: name -> values in order. `+` is a space, as forms write it.

    Raises:
        MatrixError: it does not decode to UTF-8 (400 M_INVALID_PARAM).
    """
    result: dict[str, list[str]] = {}
    for pair in raw.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            result.setdefault(_decode_form(name), []).append(_decode_form(value))
    return result


def _decode_form(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    if "%" not in text and text.isascii():
        return text
    try:
        return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise invalid_param("The query is not UTF-8") from None
