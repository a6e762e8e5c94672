"""`/sync`: one module per kind of data, and `engine`, which chooses memory or database and waits.

request      the parameters, checked
engine       one request from arrival to answer
context      what all parts of one answer share
timeline     a room's timeline: the last events that the reader may and wants to see
state        the state that belongs with a timeline
sent_members which members a lazy-loading client has
joined       joined rooms
invited      invites and knocks
left         rooms left since, or all of them
unread       notification counts
receipts     receipts, as ephemeral events
typing       who types
account_data global and per room
to_device    the device's inbox
device_lists whose keys to ask for again
presence     presence of those one shares a room with
from_window  an answer from memory
from_database an answer from the database
"""
