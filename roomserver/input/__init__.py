"""Judging what INPUT asks: one module a step, in the order of architecture §3, step 2.

decode        INPUT messages into requests
batch         what a batch has read and will write; nothing is written before its end
load          what the batch needs, in few statements
local         entries of our own users: whole or not at all, on the present heads
federation    events of other servers, one by one; what waits for others
history       older events, outliers, memberships in rooms that we are not in
import_pages  an import's events, page by page, before the entry that commits them
commit_import, partial, purge, replay     the other kinds of entries
gaps          prev events that are not here, and when they come
heads         which heads a local entry must be built on
auth          auth at the auth events and at the state before
snapshots     state at events: snapshots and their loading
resolution    state resolution where branches meet
apply         heads, current state, members, servers, participation
visibility    what decides who may see an event
redactions    redacted forms, also when the redaction came first
merge         the hidden event that joins heads
outputs       entries and messages for OUTPUT
finish        messages are numbered and everything is written; dead letters
work          what goes into a transaction, and what comes out
judge         the whole: batch, savepoints
"""
