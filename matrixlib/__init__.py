"""The Matrix protocol as pure functions and types: no I/O, no clock, no database."""
