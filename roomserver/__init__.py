"""The RoomServer: judges what INPUT asks, owns events and state, tells OUTPUT.

    INPUT ─► processor ─► input.judge (one transaction a batch) ─► relay ─► OUTPUT, verdicts
                              │  memory, rooms: caches of committed rows
                              └─ storage: tables and statements
    gRPC ─► rpc (query, admin) ─► storage, on reader threads

`service` wires it, `leases` says which partitions are ours.
"""
