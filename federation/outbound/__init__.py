"""Asking other servers: everything that leaves this service over the network.

errors        what can go wrong, and what of it a client may see
deny          addresses that are never connected to
discovery     from a server name to where its requests go
transport     one HTTPS request, with limits on everything that is read
backoff       how a destination's failures delay the next try
client        signed requests to destinations that are not backing off
calls         one function for each endpoint of other servers, with the checks of its answer
"""
