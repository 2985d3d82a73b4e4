"""Loops that keep requests moving: outbox, sweeper, checks, reports."""
