"""What a service is, and the process that runs one or several of them.

`protocol` is what a service has to offer, `groups` says which services share a process, `listeners` binds
sockets, `runner` is the life of a process, `exposition` its metrics and health as HTTP, `sockets` where each
process is asked.
"""

from servicekit.service.protocol import Factory, Service, ServiceFailed

__all__ = ["Factory", "Service", "ServiceFailed"]
