"""clientapi's own database: tables, migrations and queries.

`tables` is the schema. The other modules hold queries by what they are about. Every function is
synchronous, takes a Connection first and never commits: the caller's unit of work does
(`servicekit.database`).
"""
