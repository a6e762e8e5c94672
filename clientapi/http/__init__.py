"""The client-server endpoints of accounts and of writing into rooms, one module per group.

`edge` holds what they share: who asks, how often, and how a body is read.
"""
