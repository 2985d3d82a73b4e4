"""Audit events and audit reports."""
