"""clientapi's gRPC edge: what other services ask of the owner of accounts."""
