"""The server-server API: receiver, sender and the signing keys of this deployment."""
