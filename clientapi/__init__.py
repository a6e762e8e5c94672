"""The client-facing writer: accounts, tokens, rooms and sends."""
