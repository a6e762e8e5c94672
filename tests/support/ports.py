"""Free ports, for servers that cannot be told to choose one themselves."""

import random
import socket

# Below those that the system gives to outgoing connections: one of them could take a port before its server does.
FIRST, LAST = 20_000, 32_000


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    while True:
        port = random.SystemRandom().randint(FIRST, LAST)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
