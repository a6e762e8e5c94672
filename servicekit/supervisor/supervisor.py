"""All children together.

The supervisor binds the listeners' sockets and hands them down, so that a port stays through a restart. It
writes into the run directory

    listeners.json   host, port and resources of each listener, as they really are
    pids.json        process name -> pid, written anew at every start of a child
    arbor.lock       held while it runs

and ends the children in the order in which work flows: edges, then the RoomServer, then NATS.
"""

import fcntl
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from servicekit.config.errors import ConfigError
from servicekit.config.schema import Config
from servicekit.logging import get_logger, setup_logging
from servicekit.nats_server import lock_store_dir, prepare_nats_server
from servicekit.service.groups import ProcessGroup, available_services, process_groups
from servicekit.service.listeners import ENV_SOCKETS, bind_listener, describe_listeners, write_json_file
from servicekit.supervisor.children import Child

log = get_logger("supervisor")

ENV_PARENT = "ARBOR_INTERNAL_PARENT"
EXIT_CONFIG = 78
# By this many seconds after the signal each has ended or is killed; 30 in all is what is promised.
EDGES_END_S, ROOMSERVER_END_S, NATS_END_S = 16.0, 23.0, 27.0
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


class AlreadyRunning(Exception):
    """Another `arbor run` has this data directory."""


def run(config: Config, arguments: Sequence[str], out: TextIO = sys.stdout) -> int:
    """Run everything in the foreground until SIGTERM or SIGINT; returns the exit status.

    Args:
        config: the deployment's.
        arguments: command-line arguments from which children load the same configuration.
        out: where it says where it listens.

    Raises:
        AlreadyRunning: see there.
        ConfigError: a listener cannot be bound.
        NatsServerError: the embedded nats-server cannot be started.
    """
    setup_logging(config.logging, "supervisor")
    # Blocked, signals wait until the loop below asks for them: none is missed, no handler interrupts
    # anything.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    lock = _lock(config.run_dir)
    try:
        return _Supervisor(config, arguments, out).run()
    finally:
        lock.close()


def _lock(run_dir: Path) -> TextIO:
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (run_dir / "arbor.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise AlreadyRunning(f"another arbor runs with {run_dir}") from error
    return lock


class _Supervisor:
    """See the module."""

    def __init__(self, config: Config, arguments: Sequence[str], out: TextIO) -> None:
        self._config = config
        self._arguments = list(arguments)
        self._out = out
        self._sockets: dict[int, socket.socket] = {}
        self._nats: Child | None = None
        self._children: list[Child] = []
        self._failed = False

    def run(self) -> int:
        """See `run`."""
        config = self._config
        services = available_services(config)
        for missing in [name for name in ("roomserver", "clientapi", "syncapi") if name not in services]:
            self._say(f"Not installed, and left out: {missing}")
        if not services:
            raise ConfigError("no service is installed")
        self._sockets = {
            number: bind_listener(listener, number) for number, listener in enumerate(config.listeners)
        }
        if config.nats.embedded:
            # Handed down: a server that outlives us keeps the next one from the same streams.
            lock = lock_store_dir(config.nats.store_dir)
            # One thread that runs Go code: on one machine the log is a small part of the work, and threads
            # that wake each other for every message cost a third more.
            environment = {"GOMAXPROCS": "1", **os.environ}
            self._nats = Child("nats", prepare_nats_server(config).argv, environment, (lock,))
            self._children.append(self._nats)
        self._children += [self._child(group) for group in process_groups(config, services)]
        write_json_file(config.run_dir / "listeners.json", describe_listeners(config, self._sockets))
        for child in self._children:
            self._start(child)
        self._announce()
        self._watch()
        self._end()
        return EXIT_CONFIG if self._failed else 0

    def _child(self, group: ProcessGroup) -> Child:
        handed = {str(number): self._sockets[number].fileno() for number in group.listeners}
        environment = {**os.environ, ENV_SOCKETS: json.dumps(handed), ENV_PARENT: str(os.getpid())}
        argv = [sys.executable, "-m", "servicekit.cli", "serve", group.name, ",".join(group.services)]
        return Child(group.name, [*argv, *self._arguments], environment, tuple(handed.values()))

    def _start(self, child: Child) -> None:
        child.start()
        pids = {child.name: child.pid for child in self._children if child.pid is not None}
        write_json_file(self._config.run_dir / "pids.json", pids)

    def _announce(self) -> None:
        config = self._config
        self._say(f"Arbor runs for {', '.join(config.server_names)}; its data is in {config.data_dir}")
        for listener in describe_listeners(config, self._sockets):
            scheme = "https" if listener["tls"] else "http"
            host = f"[{listener['host']}]" if ":" in listener["host"] else listener["host"]
            self._say(f"  {scheme}://{host}:{listener['port']}  {', '.join(listener['resources'])}")
        command = shlex.join(["arbor", "user", "create", "NAME", "--admin", *self._arguments])
        self._say(f"Make the first user with: {command}")

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def _watch(self) -> None:
        """Start again what dies, until a signal or a child that cannot run."""
        while True:
            planned = [child.restart_at for child in self._children if child.restart_at is not None]
            wait_s = max(0.0, min(planned) - time.monotonic()) if planned else 3600.0
            received = signal.sigtimedwait(_SIGNALS, wait_s)
            if received is not None and received.si_signo != signal.SIGCHLD:
                log.info("stopping", signal=signal.Signals(received.si_signo).name)
                return
            # One SIGCHLD may stand for several deaths.
            for child in self._children:
                pid = child.pid
                status = child.poll()
                if status == EXIT_CONFIG:
                    log.error("child_cannot_run", child=child.name)
                    self._failed = True
                    return
                if status is not None:
                    log.warning("child_died", child=child.name, pid=pid, status=status)
            now = time.monotonic()
            for child in self._children:
                if child.restart_at is not None and child.restart_at <= now:
                    self._start(child)

    def _end(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        started = time.monotonic()
        last = [child for child in self._children if child.name == "roomserver"]
        nats = [self._nats] if self._nats is not None else []
        first = [child for child in self._children if child not in last and child not in nats]
        for children, end_s in ((first, EDGES_END_S), (last, ROOMSERVER_END_S), (nats, NATS_END_S)):
            for child in children:
                child.send(signal.SIGTERM)
            self._wait_for_end(children, started + end_s)
        (self._config.run_dir / "pids.json").unlink(missing_ok=True)
        (self._config.run_dir / "listeners.json").unlink(missing_ok=True)

    def _wait_for_end(self, children: list[Child], deadline: float) -> None:
        while True:
            for child in children:
                child.poll()
            alive = [child for child in children if child.pid is not None]
            if not alive:
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                for child in alive:
                    log.warning("child_killed", child=child.name, pid=child.pid)
                    child.send(signal.SIGKILL)
                deadline = time.monotonic() + 1.0
                continue
            signal.sigtimedwait((signal.SIGCHLD,), min(left_s, 1.0))
