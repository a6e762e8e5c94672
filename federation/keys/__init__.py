"""Signing keys: ours, as others read them, and those of other servers.

published   our own keys as the signed object that others fetch
remote      what a server's key object must be to be believed
ring        fetching, keeping and refetching other servers' keys
"""
