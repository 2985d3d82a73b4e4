"""Metrics, attacks and the verdict."""
