"""What other servers send us, from a transaction to the RoomServer.

pdu_checks    steps 1 to 3 of the checks on receipt: format, signatures, hashes
transactions  one transaction: dedup, checks, durable staging, INPUT, a result for each PDU
edus          what an EDU may say, and where it goes
staging       PDUs that a crash or a silent log left unjudged
fetcher       events that are missing, fetched from whoever may have them
"""
