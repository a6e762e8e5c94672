"""The RoomServer's edges: `query` (questions about rooms) and `admin` (imports and repairs)."""
