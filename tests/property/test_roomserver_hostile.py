"""A few rounds of what `make fuzz-judging` does for longer: no event of another server raises."""

import pytest

from tests.fuzz.fuzz_judging import run_one


@pytest.mark.parametrize("seed", [106, 135, *range(1, 9)])
def test_hostile_events_get_verdicts_and_the_room_goes_on(seed: int) -> None:
    run_one(seed)
