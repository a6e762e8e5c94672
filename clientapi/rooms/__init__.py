"""Writing into rooms: the local-send flow of docs/architecture.md, section 3, and what is built on it.

`send` is the way in: repeated transactions, one `lane` per room. A lane keeps the room's head (`head`) and
builds (`building`) what waits as a chain on it; `input_writer` writes to INPUT and brings each entry's
verdict back, whatever happens to NATS or the RoomServer meanwhile; `verdicts` is the table from verdicts to
answers; `queries` asks the RoomServer. On top: `create`, `membership`, `redaction`, `upgrade`, `aliases`,
`public_rooms`, `profile_updates`.
"""
