"""The gateway: HTTP in, rows out; no torch, no queue."""
