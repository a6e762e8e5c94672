"""The RoomServer: judges what INPUT asks, owns events and state, tells OUTPUT.

    INPUT ─► processor ─► committing ─► input.judge (one transaction a batch) ─► relay ─► OUTPUT, verdicts
                              │  memory, rooms: caches of committed rows
                              └─ storage: tables and statements
    gRPC ─► rpc (query, admin) ─► storage, on reader threads

`service` wires it, `ownership` takes partitions and hands them over, `places` knows what stands where on OUTPUT.
"""
