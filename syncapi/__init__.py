"""The client-facing reader: /sync, /messages and every read of a room."""
