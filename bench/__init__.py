"""Measurements; nothing imports this package."""
