"""What other services call: `servicer`."""
