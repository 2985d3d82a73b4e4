"""Deletion requests: states, clocks, subjects, targets."""
