"""The endpoints: one module each. `edge` is what they share."""
