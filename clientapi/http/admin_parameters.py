"""What the endpoints of the admin API share: reading of parameters, and of pages."""

from dataclasses import dataclass
from typing import Final

from clientapi.http.edge import check_user_id
from clientapi.storage import administration
from clientapi.storage.administration import Account
from matrixlib.identifiers import server_name_of
from servicekit.config import Config
from servicekit.database import Database
from servicekit.errors import invalid_param, not_found
from servicekit.http import Request

MAX_PAGE: Final = 1000
MAX_OFFSET: Final = 2**31


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted. `backwards`: from its end."""

    start: int
    limit: int
    backwards: bool


async def existing_account(db: Database, user_id: str) -> Account:
    """Return a local account. Raises MatrixError M_NOT_FOUND."""
    account = await db.read(administration.load_account, user_id)
    if account is None:
        raise not_found("User not found")
    return account


def page_of_query(request: Request, default_direction: str = "f") -> Page:
    """Return `from`, `limit` and `dir` of a query. Raises MatrixError M_INVALID_PARAM."""
    query = request.query
    start = admin_number(query.get("from", "0"), "from", 0, MAX_OFFSET)
    limit = admin_number(query.get("limit", "100"), "limit", 0, 10**9)
    direction = query.get("dir", default_direction)
    if direction not in ("f", "b"):
        raise invalid_param("dir must be f or b")
    return Page(start, min(limit, MAX_PAGE), direction == "b")


def admin_number(text: str, name: str, least: int, most: int) -> int:
    """Return a whole number of a query. Raises MatrixError M_INVALID_PARAM."""
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
        raise invalid_param(f"{name} is not a number that fits")
    return int(text)


def bool_of_query(request: Request, name: str) -> bool | None:
    """Return a query parameter that is `true` or `false`; None without it. Raises MatrixError M_INVALID_PARAM."""
    text = request.query.get(name)
    if text is None:
        return None
    if text not in ("true", "false"):
        raise invalid_param(f"{name} must be true or false")
    return text == "true"


def local_user(config: Config, user_id: str) -> str:
    """Return the id of a user of this server, who need not exist. Raises MatrixError M_INVALID_PARAM."""
    user_id = check_user_id(user_id)
    if not config.is_local(server_name_of(user_id)):
        raise invalid_param("Not a user of this server")
    return user_id
