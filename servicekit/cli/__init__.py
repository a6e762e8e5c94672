"""The `arbor` command.

`main` has the arguments; each command's work is in a module of its own, imported when used.
"""
