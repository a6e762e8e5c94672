"""A toy in place of the media service."""
