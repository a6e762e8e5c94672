"""Synapse's own modules as a second opinion: they run in a venv of their own, `.peers/synapse`, behind a
pipe.

`client.Oracle` starts `process.py` with that venv's Python and talks JSON lines with it. Nothing of it is
imported by what is shipped, nor by the tests' own interpreter.
"""
