"""The tests, by tier: see docs/ and the Makefile."""
