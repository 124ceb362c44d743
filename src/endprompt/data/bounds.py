"""How much of an input is held in memory at a time, whatever the input claims to hold."""

from __future__ import annotations

DOCUMENT_BYTES = 2**24
"""Longest document, in bytes of UTF-8: 16 MiB, some 4 million tokens."""
ROW_BYTES = 2 * DOCUMENT_BYTES
"""Longest row of JSON or csv, its other columns and its escapes included."""
BATCH_BYTES = 2**27
"""Largest page of parquet and largest batch of Arrow, unpacked: 128 MiB."""
VALUES_BYTES = 2**28
"""Most memory that the values of one row may take as Python objects."""
