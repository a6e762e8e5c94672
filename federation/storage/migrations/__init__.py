"""Schema revisions of the federation service."""
