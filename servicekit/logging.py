"""Structured log lines: an event's name and its fields, for people (console) or machines (JSON).

`get_logger("roomserver.input")` gives a logger, `log.info("batch_applied", entries=12)` writes a line. The id
of the request in progress and the trace id are added. What looks like a secret is blotted out whichever way
it came: by a field's name, or by its form inside any text, tracebacks and lines of libraries included.
"""

import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any

import orjson

from servicekit import tracing
from servicekit.config.schema import Logging

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

REDACTED = "<redacted>"
_SECRET_FIELDS = frozenset(
    {
        "access_token",
        "auth",
        "authorization",
        "body",
        "content",
        "cookie",
        "credentials",
        "key",
        "login_token",
        "mac",
        "new_password",
        "password",
        "private_key",
        "refresh_token",
        "secret",
        "session_key",
        "shared_secret",
        "signing_key",
        "token",
    }
)
# A secret inside a text: a query parameter, a header, a JSON or Python mapping, a URL's password, our own
# tokens.
_SECRET_PATTERNS = (
    (
        re.compile(
            r"(?i)((?:access_token|refresh_token|login_token|password|secret|shared_secret|client_secret|token)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\"'&\s,;}<]+"
        ),
        r"\1" + REDACTED,
    ),
    (re.compile(r"(?i)\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+"), r"\1 " + REDACTED),
    (re.compile(r"(?i)(X-Matrix\s.*?\bsig=)[\"']?[A-Za-z0-9+/=]+[\"']?"), r"\1" + REDACTED),
    (re.compile(r"(://[^/\s:@]+:)[^/\s@]+@"), r"\1" + REDACTED + "@"),
    (re.compile(r"\barb[a-z]?_[A-Za-z0-9_-]{16,}"), REDACTED),
)
# The quick look that spares nearly every line the patterns above.
_SUSPICION = re.compile(r"(?i)token|passw|secret|bearer|basic|x-matrix|://|\barb[a-z]?_")


def redact(text: str) -> str:
    """Return the text with everything that looks like a secret blotted out."""
    if _SUSPICION.search(text) is None:
        return text
    for pattern, replacement in _SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_target(target: str) -> str:
    """Return a request target (path and query) without its query's values."""
    path, mark, query = target.partition("?")
    if not mark:
        return redact(path)
    names = [pair.partition("=")[0] for pair in query.split("&")]
    return redact(path) + "?" + "&".join(f"{name}=…" for name in names)


class Logger:
    """A named logger whose lines have fields. `exception` adds the traceback of the exception in progress."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def enabled_for(self, level: int) -> bool:
        """Say whether lines of a level are written, where making the fields costs something."""
        return self._logger.isEnabledFor(level)

    def debug(self, event: str, /, **fields: Any) -> None:
        """Write what only somebody looking for a fault wants to see."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, /, **fields: Any) -> None:
        """Write what an operator wants to see."""
        if self._logger.isEnabledFor(logging.INFO):
            self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, /, *, exc_info: BaseException | bool = False, **fields: Any) -> None:
        """Write what an operator should look at some day."""
        self._logger.warning(event, exc_info=exc_info or None, extra={"fields": fields})

    def error(self, event: str, /, *, exc_info: BaseException | bool = False, **fields: Any) -> None:
        """Write what an operator should look at now."""
        self._logger.error(event, exc_info=exc_info or None, extra={"fields": fields})

    def exception(self, event: str, /, **fields: Any) -> None:
        """Write an error with the traceback of the exception in progress."""
        self._logger.error(event, exc_info=True, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    """Return the logger of a module or part, by dotted name."""
    return Logger(logging.getLogger(name))


def setup_logging(config: Logging, process: str = "arbor") -> None:
    """Send all lines of this process to where the configuration says. `process` stands in each line."""
    handler: logging.Handler
    if config.path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        config.path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(config.path)
    handler.setFormatter(JsonFormatter(process) if config.format == "json" else ConsoleFormatter(process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(config.level.upper())
    # Libraries say at info what we say ourselves, and better, or nobody wants to know.
    for name in ("aiohttp.access", "alembic", "sqlalchemy", "nats", "asyncio", "grpc", "opentelemetry"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def quiet_logging() -> None:
    """Write errors only, to stderr: for commands whose output is for people or pipes."""
    setup_logging(Logging(level="error"))


def _record_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        name: REDACTED if name in _SECRET_FIELDS else value
        for name, value in getattr(record, "fields", {}).items()
    }
    current = request_id.get()
    if current is not None:
        fields["request_id"] = current
    trace_id = tracing.current_trace_id()
    if trace_id is not None:
        fields["trace_id"] = trace_id
    return fields


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        # Bytes are bodies, keys and hashes: their length says enough.
        return f"<{len(value)} bytes>"
    return redact(value if type(value) is str else repr(value) if isinstance(value, str) else str(value))


class ConsoleFormatter(logging.Formatter):
    """`02:20:01.123 INFO  edge clientapi.login  logged_in user_id=@a:b`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it."""
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        parts = [
            f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {self._process} {record.name}:",
            redact(record.getMessage()),
        ]
        for name, value in _record_fields(record).items():
            shown = _plain(value)
            if isinstance(shown, str) and (" " in shown or not shown or "\n" in shown):
                shown = repr(shown)
            parts.append(f"{name}={shown}")
        line = " ".join(parts).replace("\n", "\\n")
        if record.exc_info:
            line += "\n" + redact(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO, UTC), level, process, logger, event, the fields, traceback."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": redact(record.getMessage()),
        }
        for name, value in _record_fields(record).items():
            line.setdefault(name, _plain(value))
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()
