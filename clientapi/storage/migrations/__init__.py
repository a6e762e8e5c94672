"""Schema revisions of clientapi's database."""
