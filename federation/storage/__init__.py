"""The federation service's own database. Functions take a Connection first, are synchronous and never commit.

tables         every table and column
keys           remote signing keys
inbound        transactions of other servers, and what of them is not judged yet
fetching       events that are awaited, and pulls that failed
destinations   how each destination stands, and where its rooms are
outgoing       what destinations have not been told yet
jobs           joins in progress
"""
