"""HTTP edges of services, on aiohttp's low-level server.

`routing` finds the route of a path (exact segments, nothing normalised), `messages` is what handlers get and
give, `json_bodies` reads JSON from strangers, `server` joins them: errors, CORS, limits, ids, metrics;
`rate_limit` is the token bucket. A handler is `async def handler(request: Request) -> Response`; a
`MatrixError` raised anywhere becomes the standard error response.
"""

from servicekit.errors import MatrixError, missing_token, unknown_token
from servicekit.http.messages import Request, Response, json_response
from servicekit.http.rate_limit import RateLimiter
from servicekit.http.routing import Handler, Route, Router
from servicekit.http.server import HttpListener

__all__ = [
    "Handler",
    "HttpListener",
    "MatrixError",
    "RateLimiter",
    "Request",
    "Response",
    "Route",
    "Router",
    "json_response",
    "missing_token",
    "unknown_token",
]
