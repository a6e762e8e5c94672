"""Tables and queries of the sync API. Functions are synchronous, take a Connection first, never commit."""
