"""The migrations make the tables that the code uses, and every table says which kind it is."""

from pathlib import Path

from servicekit.database.testing import schema_differences
from syncapi.storage.tables import log_tables, metadata


def test_head_is_what_the_tables_say(tmp_path: Path) -> None:
    assert schema_differences(metadata, "syncapi.storage.migrations", tmp_path) == []


def test_every_table_is_derived_or_primary() -> None:
    logs = {log_tables.position.name, log_tables.output_no.name, log_tables.dead_letter.name}
    for table in metadata.tables.values():
        assert table.name in logs or table.info["kind"] in ("derived", "primary"), table.name
    assert {name for name, table in metadata.tables.items() if table.info.get("kind") == "primary"} == {
        "receipt",
        "to_device",
        "marker",
    }
