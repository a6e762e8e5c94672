"""Which services share a process."""

from servicekit.config import Config, load_config
from servicekit.service.groups import ProcessGroup, process_groups

SERVICES = ("roomserver", "clientapi", "syncapi", "federation")


def with_listeners(*resources: list[str]) -> Config:
    """Return a configuration with a listener for each list of resources."""
    return load_config(None, {}, {"listeners": [{"port": 0, "resources": names} for names in resources]})


def test_one_port_for_everything_is_one_edge_beside_the_roomserver() -> None:
    groups = process_groups(load_config(None, {}), SERVICES)
    assert groups == (
        ProcessGroup("roomserver", ("roomserver",), ()),
        ProcessGroup("edge", ("clientapi", "syncapi", "federation"), (0,)),
    )


def test_a_listener_of_its_own_gives_federation_a_process_of_its_own() -> None:
    groups = process_groups(with_listeners(["client", "admin"], ["federation"], ["metrics"]), SERVICES)
    assert groups == (
        ProcessGroup("roomserver", ("roomserver",), ()),
        ProcessGroup("edge", ("clientapi", "syncapi"), (0, 2)),
        ProcessGroup("federation", ("federation",), (1,)),
    )


def test_sharing_joins_through_any_listener() -> None:
    groups = process_groups(with_listeners(["client"], ["federation"], ["admin", "federation"]), SERVICES)
    assert [group.services for group in groups] == [("roomserver",), ("clientapi", "syncapi", "federation")]
    assert groups[1].listeners == (0, 1, 2)


def test_every_listener_is_served_by_exactly_one_process() -> None:
    config = with_listeners(["client"], ["media"], ["federation", "metrics"], ["metrics"], ["admin"])
    served = [number for group in process_groups(config, SERVICES) for number in group.listeners]
    assert sorted(served) == [0, 1, 2, 3, 4]
