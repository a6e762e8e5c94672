"""Which services there are, which resources they serve, and which of them share a process.

Services that share a listener share a process; the RoomServer, which serves no listener, has one of its own.
With the default configuration, one port for everything, that gives `roomserver` and `edge`; with a listener
of its own, federation is a third process. Nothing heavy is imported here: the supervisor uses it.
"""

import importlib.util
from dataclasses import dataclass

from servicekit.config.schema import Config, Listener, Resource

# service -> resources of listeners it serves
SERVICE_RESOURCES: dict[str, frozenset[Resource]] = {
    "roomserver": frozenset(),
    "clientapi": frozenset({"client", "admin"}),
    "syncapi": frozenset({"client"}),
    "federation": frozenset({"federation"}),
    "mediaapi": frozenset({"media"}),
    "appservice": frozenset(),
}


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The services of one process and its listeners, as indices into `config.listeners`."""

    name: str
    services: tuple[str, ...]
    listeners: tuple[int, ...]


def available_services(config: Config) -> tuple[str, ...]:
    """Return the services that are installed and turned on."""
    return tuple(
        service
        for service in SERVICE_RESOURCES
        if (service != "federation" or config.federation.enabled) and is_installed(service)
    )


def is_installed(service: str) -> bool:
    """Say whether there is a service's package with its factory."""
    try:
        return importlib.util.find_spec(f"{service}.service") is not None
    except ModuleNotFoundError:
        return False


def listener_serves(listener: Listener, service: str) -> bool:
    """Say whether a listener serves any of a service's resources."""
    return bool(SERVICE_RESOURCES[service] & frozenset(listener.resources))


def process_groups(config: Config, services: tuple[str, ...]) -> tuple[ProcessGroup, ...]:
    """Return the processes that `arbor run` starts for these services.

    A listener for metrics alone goes to the process of the client edge (or the last there is), which gathers
    the others' metrics.
    """
    groups: list[set[str]] = [{service} for service in services]
    for listener in config.listeners:
        sharing = [group for group in groups if any(listener_serves(listener, name) for name in group)]
        if len(sharing) > 1:
            groups = [group for group in groups if group not in sharing] + [set().union(*sharing)]
    ordered = [tuple(name for name in services if name in group) for group in groups]
    ordered.sort(key=lambda group: services.index(group[0]))
    # What is gathered in one place is served by the edge; without one, by the last process.
    gatherer = next((group for group in ordered if "clientapi" in group), ordered[-1] if ordered else ())
    return tuple(
        ProcessGroup(
            _name(group),
            group,
            tuple(
                number
                for number, listener in enumerate(config.listeners)
                if any(listener_serves(listener, name) for name in group)
                or (group == gatherer and not _served_by_any(listener, services))
            ),
        )
        for group in ordered
    )


def _served_by_any(listener: Listener, services: tuple[str, ...]) -> bool:
    return any(listener_serves(listener, service) for service in services)


def _name(services: tuple[str, ...]) -> str:
    return "edge" if "clientapi" in services else "+".join(services)
