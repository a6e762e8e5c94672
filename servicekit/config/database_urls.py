"""Each service's own database, derived from the one URL of the configuration.

SQLite: a file `<service>.db` beside the file given. PostgreSQL: a schema `<service>` inside the database
    given, first in the search path of every connection, so that an operator creates one database and no
    service sees another's tables.
"""

from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from servicekit.config.errors import ConfigError

ALLOWED_FORM = "sqlite:///path/to/file.db or postgresql://user:password@host:port/name"


def check_database_url(url: str, path: str) -> str:
    """Return the URL in the form that SQLAlchemy takes (`sqlite:///…`, `postgresql+psycopg://…`).

    Raises:
        ConfigError: it is neither SQLite nor PostgreSQL.
    """
    if url.startswith("sqlite:///"):
        return url
    if url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        return "postgresql+psycopg://" + url.split("://", 1)[1]
    scheme = url.split(":", 1)[0]
    raise ConfigError(f"the database kind {scheme!r} is not known; allowed: {ALLOWED_FORM}", path=path)


def derive_database_url(url: str, service: str) -> str:
    """Return a service's own URL: see the module. `url` has passed `check_database_url`."""
    if url.startswith("sqlite:///"):
        location, _, query = url.removeprefix("sqlite:///").partition("?")
        directory = location.rpartition("/")[0]
        file = f"{directory}/{service}.db" if directory else f"{service}.db"
        return f"sqlite:///{file}" + (f"?{query}" if query else "")
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = " ".join([value for key, value in pairs if key == "options"] + [f"-csearch_path={service}"])
    rest = [(key, value) for key, value in pairs if key != "options"]
    query = "&".join(f"{quote(key)}={quote(value, safe='')}" for key, value in [*rest, ("options", options)])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
