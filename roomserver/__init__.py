"""The RoomServer: judges what INPUT asks, owns events and state, tells OUTPUT."""
