"""Targets that run for a bounded time, each as `python -m tests.fuzz.NAME --seconds N`."""
