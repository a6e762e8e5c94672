"""Metrics: one registry, made once, joined over processes."""

import pytest

from servicekit import metrics
from servicekit.service.exposition import join


def test_the_same_name_is_the_same_metric() -> None:
    first = metrics.counter("test_once_total", "Test", ["kind"])
    assert metrics.counter("arbor_test_once_total", "Test", ["kind"]) is first
    first.labels("a").inc(2)
    assert b'arbor_test_once_total{kind="a"} 2.0' in metrics.exposition()
    with pytest.raises(ValueError, match="another type or other labels"):
        metrics.gauge("test_once_total", "Test", ["kind"])
    with pytest.raises(ValueError, match="another type or other labels"):
        metrics.counter("test_once_total", "Test", ["other"])


def test_joined_expositions_have_each_family_once_and_say_the_process() -> None:
    family = "# HELP arbor_x_total Text\n# TYPE arbor_x_total counter\n"
    joined = join(
        {
            "edge": family
            + 'arbor_x_total{kind="a"} 1.0\n# HELP arbor_y Y\n# TYPE arbor_y gauge\narbor_y 2.0\n',
            "roomserver": family + 'arbor_x_total{kind="a"} 3.0\n',
        }
    )
    assert joined == (
        family
        + 'arbor_x_total{process="edge",kind="a"} 1.0\n'
        + 'arbor_x_total{process="roomserver",kind="a"} 3.0\n'
        + '# HELP arbor_y Y\n# TYPE arbor_y gauge\narbor_y{process="edge"} 2.0\n'
    )
