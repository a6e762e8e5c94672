"""The sync API: what clients read of rooms and accounts, made from the OUTPUT log alone.

service        wiring
consumer       applies OUTPUT entries to the database, on the writer thread
applying/      what each kind of OUTPUT entry does: one module per purpose
notifications  what push rules make of an event: per class of rule set, with exceptions
rendering      an event's client JSON as bytes, and how the variants of `unsigned` are spliced in
window         what is recent, in memory: answers incremental /sync without the database
live           who types, from the LIVE stream
presence       who reads is present: told on LIVE
filters        filters, compiled
tokens         sync tokens and topological tokens
access         which user may read which part of a room
auth           whose access token it is, remembered
rebuild        derived tables made anew from the owners' exports
storage/       tables and queries
sync/          /sync: one module per kind of data
http/          one module per endpoint
"""
