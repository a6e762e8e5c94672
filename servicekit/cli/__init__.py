"""The `arbor` command."""
