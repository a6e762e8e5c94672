"""Accounts: passwords, sessions (tokens and devices), user-interactive auth, registration, profiles, push
rules.

`tell` is what readers hear of it: each change is told on OUTPUT through the outbox, in the same unit of work.
"""
