"""Units of work on dedicated threads.

        loop  --- write(fn) --->  [queue]  --->  the writer thread    its own connection, one transaction a
        unit
              --- read(fn)  --->  [queue]  --->  reader threads       a connection each, one snapshot a unit
              --- write_here(fn)                 the loop itself, on the writer's connection: a small unit on SQLite

The hop costs about 0.05 ms and wakes two threads, so a request does all its queries in one unit, and a small unit
that usually ends at once may do without (`write_here`). A unit never asks for another unit: that would wait for
itself, and is an error at once.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from servicekit import metrics
from servicekit.database import migrations
from servicekit.database.engine import Durability, Role, create_engine

P = ParamSpec("P")
R = TypeVar("R")
Work = Callable[Concatenate[Connection, P], R]

_unit_seconds = metrics.histogram(
    "database_unit_seconds", "Time of a unit of work on its thread", ["database", "kind"]
)
_queue_length = metrics.gauge("database_queue_length", "Units of work that wait", ["database", "kind"])

_in_unit = threading.local()

QUICK_S = 0.003
"""Units that usually take longer than this do not block the event loop."""


class NestedAcquireError(RuntimeError):
    """A unit of work asked for another one: it would wait for the thread it stands on."""


class DatabaseClosedError(RuntimeError):
    """The database was closed."""


class _Job(NamedTuple):
    work: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    # One of the two: an asyncio future with its loop (concurrent futures cost three times as much), or a
    # blocking one.
    loop: asyncio.AbstractEventLoop | None
    future: "asyncio.Future[Any] | Future[Any]"

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Hand the outcome to whoever waits."""
        if self.loop is None:
            _settle(self.future, result, error)
        else:
            # A loop that has ended meanwhile has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(_settle, self.future, result, error)


def _settle(future: "asyncio.Future[Any] | Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class _Session:
    """A connection, on which one unit of work runs at a time."""

    def __init__(self, engine: Engine, seconds: Any, *, retry: bool) -> None:
        self.turn = threading.Lock()
        self.usual_s = 0.0
        """About how long the last units took."""
        self._engine = engine
        self._seconds = seconds
        self._retry = retry
        self._connection: Connection | None = None

    def run(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a unit in one transaction. Whoever calls holds the `turn`."""
        started = time.perf_counter()
        _in_unit.active = True
        try:
            try:
                return self._run_once(work, args, kwargs)
            except Exception as error:
                # The server went away. What reads may be read again; a write's fate is for its caller to find
                # out.
                if not (_is_lost(self._connection, error) and self._retry):
                    raise
                self.close()
                return self._run_once(work, args, kwargs)
        except BaseException:
            connection = self._connection
            if connection is not None and (connection.invalidated or connection.closed):
                self.close()
            raise
        finally:
            _in_unit.active = False
            took_s = time.perf_counter() - started
            self.usual_s += (took_s - self.usual_s) / 8
            self._seconds.observe(took_s)

    def _run_once(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            return work(self._connection, *args, **kwargs)

    def close(self) -> None:
        """Close the connection; the next unit opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Threads:
    """A few threads that take jobs from one queue, each with a connection of its own."""

    def __init__(self, name: str, kind: str, engine: Engine, count: int, *, retry: bool) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        seconds = _unit_seconds.labels(name, kind)
        # Read at scrape time, so that the hot path counts nothing.
        _queue_length.labels(name, kind).set_function(self._jobs.qsize)
        self._closed = False
        self._sessions = [_Session(engine, seconds, retry=retry) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._serve, args=[session], name=f"{name}-{kind}-{number}", daemon=True)
            for number, session in enumerate(self._sessions)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a job and await its outcome."""
        self._check()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._jobs.put(_Job(work, args, kwargs, loop, future))
        return await future

    async def run_here(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a job on the calling thread if that is quick; else as `run`."""
        self._check()
        session = self._sessions[0]
        if session.usual_s > QUICK_S or not self._jobs.empty() or not session.turn.acquire(blocking=False):
            return await self.run(work, args, kwargs)
        try:
            return session.run(work, args, kwargs)
        finally:
            session.turn.release()

    def run_sync(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a job and block until it is done."""
        self._check()
        future: Future[Any] = Future()
        self._jobs.put(_Job(work, args, kwargs, None, future))
        return future.result()

    def _check(self) -> None:
        if self._closed:
            raise DatabaseClosedError("the database was closed")
        if getattr(_in_unit, "active", False):
            raise NestedAcquireError("a unit of work must not start another one: pass its connection on")

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
            for thread in self._threads:
                thread.join()
            self._engine.dispose()

    def _serve(self, session: _Session) -> None:
        while (job := self._jobs.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                with session.turn:
                    result = session.run(job.work, job.args, job.kwargs)
            except BaseException as error:
                job.finish(None, error)
            else:
                job.finish(result, None)
                del result
            del job  # else the last unit's arguments live until the next one
        session.close()


def _is_lost(connection: Connection | None, error: Exception) -> bool:
    """Whether an error means that the connection is no more; one of the driver's own then ends it here, as
    SQLAlchemy does for those that it sees.
    """
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if connection is None or connection.closed or connection.invalidated:
        return False
    dialect = connection.dialect
    if not isinstance(error, dialect.loaded_dbapi.Error):
        return False
    if not dialect.is_disconnect(error, connection.connection.dbapi_connection, None):
        return False
    connection.invalidate(error)
    return True


class Database:
    """The database of one service in one process.

    Args:
        url: see `engine.create_engine`.
        metadata: the service's tables.
        migrations_package: such as `roomserver.storage.migrations`.
        durability: see `engine.create_engine`.
        reader_threads: connections that read at the same time.
        name: in metrics and thread names; by default the migrations package's first part.
    """

    def __init__(
        self,
        url: str,
        metadata: MetaData,
        migrations_package: str,
        *,
        durability: Durability = "full",
        reader_threads: int = 2,
        name: str | None = None,
    ) -> None:
        self.url = url
        self.metadata = metadata
        self.name = name or migrations_package.partition(".")[0]
        self._migrations_package = migrations_package
        self._is_local = make_url(url).get_backend_name() == "sqlite"
        self._writer = self._make_threads("writer", durability, 1)
        self._readers = self._make_threads("reader", durability, reader_threads)

    def _make_threads(self, role: Role, durability: Durability, count: int) -> _Threads:
        engine = create_engine(self.url, durability, role)
        return _Threads(self.name, role, engine, count, retry=role == "reader")

    def migrate(self) -> None:
        """Bring the schema to the head revision, under a lock. Blocks: call it at start.

        Raises:
            SchemaTooNewError: the schema is of a later version of the program.
        """
        migrations.migrate(self.url, self.metadata, self._migrations_package)

    async def write(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run `work(connection, *args)` on the writer thread in one transaction and return what it returns.

        It commits when `work` returns and rolls back when it raises. A caller that is cancelled leaves work
        that has begun to finish; work still in the queue is dropped.
        """
        result: R = await self._writer.run(work, args, kwargs)
        return result

    async def write_here(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do as `write` does, for a unit that is surely small: on SQLite it blocks the event loop instead of going
        to the writer thread, as long as nothing is in its way and the last units (syncing a slow disk) were quick.
        """
        run = self._writer.run_here if self._is_local else self._writer.run
        result: R = await run(work, args, kwargs)
        return result

    async def read(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run `work(connection, *args)` on a reader thread, in one snapshot that cannot write."""
        result: R = await self._readers.run(work, args, kwargs)
        return result

    def write_sync(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do as `write` does and block until it is done: for commands and tests, never on the event loop."""
        result: R = self._writer.run_sync(work, args, kwargs)
        return result

    def read_sync(
        self, work: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Do as `read` does and block until it is done."""
        result: R = self._readers.run_sync(work, args, kwargs)
        return result

    def close(self) -> None:
        """Finish what is queued, close the connections, end the threads."""
        self._writer.close()
        self._readers.close()
