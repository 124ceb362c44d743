"""A checkpoint for other people's engines: written, described, and checked in a fresh process.

`checkpoint.py` writes it, `engines.py` knows what each engine reads, `card.py` makes the model
card, `reference.py` says what the training-time model predicts, and `verify.py` compares.
"""
