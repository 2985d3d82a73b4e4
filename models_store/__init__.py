"""Checkpoints and the object store."""
