"""Counts before running: operations, memory, time."""
