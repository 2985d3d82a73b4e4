"""The roof: where ledger and engine meet."""
