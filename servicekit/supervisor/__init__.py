"""`arbor run`: nats-server and a few processes of ours, started, watched, started anew, drained.

It imports nothing heavy (no gRPC, SQLAlchemy, aiohttp, asyncio): what watches must not weigh, and must not
fail for the reasons the watched fail for. `children` is one child's life, `supervisor` all of them together.
"""

from servicekit.supervisor.supervisor import AlreadyRunning, run

__all__ = ["AlreadyRunning", "run"]
