"""Checkpoints and the object store: the ground storey, which imports nothing else of ours."""
