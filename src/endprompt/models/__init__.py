"""A checkpoint in or out."""
