"""Running services in this process, and rebuilding a reader's tables."""

import asyncio
import importlib
import inspect
import os
from collections.abc import Sequence

from servicekit.cli.main import CommandError
from servicekit.config import Config
from servicekit.logging import setup_logging
from servicekit.service.listeners import ENV_SOCKETS, inherited_sockets
from servicekit.service.protocol import ServiceFailed
from servicekit.service.runner import load_factory, run_services


def serve(config: Config, process: str, services: Sequence[str]) -> int:
    """Run services until SIGTERM; returns the exit status."""
    try:
        factories = {name: load_factory(name) for name in services}
    except ServiceFailed as error:
        raise CommandError(str(error)) from error
    sockets = inherited_sockets(os.environ) if ENV_SOCKETS in os.environ else None
    return run_services(config, factories, process=process, sockets=sockets)


def rebuild(config: Config, service: str) -> int:
    """Have a reader make its derived tables anew: `rebuild(config)` of `<service>.rebuild` says how."""
    setup_logging(config.logging, service)
    try:
        work = importlib.import_module(f"{service}.rebuild").rebuild
    except ModuleNotFoundError as error:
        if error.name not in (service, f"{service}.rebuild"):
            raise
        raise CommandError(f"{service} has nothing to rebuild here") from error
    outcome = work(config)
    if inspect.iscoroutine(outcome):
        outcome = asyncio.run(outcome)
    print(outcome if isinstance(outcome, str) else f"{service} is rebuilt")
    return 0
