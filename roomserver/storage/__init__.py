"""The RoomServer's database: tables, and functions that take a Connection, are synchronous and never commit.

tables        every table
sql           raw statements made once per dialect, for what is written or looked up in bulk
packing       integers packed into blobs
ids           numbers for events, rooms, snapshots and state keys, reserved in blocks
partitions    leases, positions, output numbers
rooms         a room's row, its heads, its servers
events        events by number or id, bodies, reasons
states        current state, state keys
snapshots     state at events as skip-deltas
auth_chains   the chain cover over auth events
outputs       what was told on OUTPUT, for `Export`
waiting       events that wait for others, missing prev events, redactions before their target
staging       imports
dead_letters  entries that could not be applied
garbage       what nothing refers to any more
"""
