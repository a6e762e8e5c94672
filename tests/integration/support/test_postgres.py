"""The databases that other tests are given."""

import pytest
from sqlalchemy import create_engine, text


def test_a_fresh_database_is_empty_and_writable(database_url: str) -> None:
    engine = create_engine(database_url)
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE thing (name TEXT)"))
            connection.execute(text("INSERT INTO thing VALUES ('ü')"))
            assert connection.execute(text("SELECT name FROM thing")).scalar_one() == "ü"
    finally:
        engine.dispose()


@pytest.mark.parametrize("_", ["first", "second"])
def test_each_test_has_a_database_of_its_own(postgres_url: str, _: str) -> None:
    engine = create_engine(postgres_url)
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE only_once (name TEXT)"))
    finally:
        engine.dispose()
