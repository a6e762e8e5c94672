"""A toy in place of the application services."""
