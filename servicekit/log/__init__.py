"""The log: three JetStream streams (INPUT, OUTPUT, LIVE) and how services write to them and follow them.

subjects     partition, token and subject of an id (contract, with test vectors)
errors       what can go wrong, as a small tree
settings     what of the configuration concerns the log
client       the NATS client, with cheap raw paths for publishing and reading
streams      the streams' settings, and how they are made and checked (never destructively)
connection   connect, epochs, publish with ack
reader       ephemeral pull consumer opened from a position, in batches, reopened after trouble
tables       position, dead letters, numbers seen, outbox
applying     a batch and the position in one transaction; savepoints and dead letters
follower     reader + applying + waiting for a position
outbox       storage of what a transaction wants told, numbered per partition
relay        publishes the outbox in order, each message once, fenced
verdicts     waiting for the RoomServer's verdict on what was written
faultpoints  where chaos tests may kill the process
"""
