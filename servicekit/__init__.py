"""What every Arbor service stands on: configuration, the log, databases, gRPC, HTTP, supervision."""
