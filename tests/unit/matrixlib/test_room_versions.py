"""Room versions as data: the table of the spec, and rule numbers that exist."""

import pytest

from matrixlib.room_versions import (
    ROOM_VERSIONS,
    EventIdFormat,
    PowerLevelValues,
    StateResolution,
    get_room_version,
)


def versions_with(**rules: object) -> list[int]:
    """The versions in which all these rules have these values."""
    return [
        int(name)
        for name, version in ROOM_VERSIONS.items()
        if all(getattr(version, rule) == value for rule, value in rules.items())
    ]


def test_the_table() -> None:
    assert versions_with() == list(range(1, 13))
    assert versions_with(event_id_format=EventIdFormat.DOMAIN) == [1, 2]
    assert versions_with(event_id_format=EventIdFormat.HASH) == [3]
    assert versions_with(event_id_format=EventIdFormat.HASH_URL_SAFE) == list(range(4, 13))
    assert versions_with(references_carry_hashes=True) == [1, 2]
    assert versions_with(room_id_is_create_hash=True) == [12]
    assert versions_with(state_resolution=StateResolution.V1) == [1]
    assert versions_with(state_resolution=StateResolution.V2) == list(range(2, 12))
    assert versions_with(state_resolution=StateResolution.V2_1) == [12]
    assert versions_with(strict_canonical_json=True) == list(range(6, 13))
    assert versions_with(enforce_key_validity=True) == list(range(5, 13))
    assert versions_with(power_level_values=PowerLevelValues.LAX) == list(range(1, 6))
    assert versions_with(power_level_values=PowerLevelValues.STRINGS) == list(range(6, 10))
    assert versions_with(power_level_values=PowerLevelValues.INTEGERS) == [10, 11, 12]
    assert versions_with(aliases_rule=True) == list(range(1, 6))
    assert versions_with(redaction_rule=True) == [1, 2]
    assert versions_with(creator_in_content=True) == list(range(1, 11))
    assert versions_with(privileged_creators=True) == [12]
    assert versions_with(limit_notification_levels=True) == list(range(6, 13))
    assert versions_with(knocking=True) == list(range(7, 13))
    assert versions_with(restricted_joins=True) == list(range(8, 13))
    assert versions_with(knock_restricted=True) == list(range(10, 13))
    assert versions_with(redacts_in_content=True) == [11, 12]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("create.allow", "1.5 1.5 1.5 1.5 1.5 1.5 1.5 1.5 1.5 1.5 1.4 1.5"),
        ("federate", "3 3 3 3 3 3 3 3 3 3 3 4"),
        ("join.first", "5.2.1 5.2.1 5.2.1 5.2.1 5.2.1 4.2.1 4.2.1 4.3.1 4.3.1 4.3.1 4.3.1 5.3.1"),
        ("member.unknown", "5.6 5.6 5.6 5.6 5.6 4.6 4.7 4.8 4.8 4.8 4.8 5.8"),
        ("levels.users", "10.1 10.1 10.1 10.1 10.1 9.1 9.1 9.1 9.1 9.3 9.3 10.3"),
        ("levels.allow", "10.8 10.8 10.8 10.8 10.8 9.8 9.8 9.8 9.8 9.10 9.10 10.10"),
        ("otherwise", "12 12 11 11 11 10 10 10 10 10 10 11"),
    ],
)
def test_rule_numbers_are_those_of_the_pages(name: str, numbers: str) -> None:
    assert [version.rule(name) for version in ROOM_VERSIONS.values()] == numbers.split()


def test_unknown_versions() -> None:
    assert get_room_version("10") is ROOM_VERSIONS["10"]
    unknown: list[object] = ["13", "", None, 10, ["10"], {}]
    for version in unknown:
        assert get_room_version(version) is None
