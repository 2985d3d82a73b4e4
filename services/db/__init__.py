"""Tables, sessions, outbox and idempotency."""
