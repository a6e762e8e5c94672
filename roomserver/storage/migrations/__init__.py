"""Schema revisions; see `servicekit.database.migrations`."""
