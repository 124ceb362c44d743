"""How long a suite will take, from a short read on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from endprompt.eval.engine import Engine

PROBE_TOKENS = {"cpu": 256, "cuda": 4096}
"""Read to find the speed: enough to keep the device busy, little beside a suite."""
STEPS = 4
"""Tokens decoded to find the time of a step."""


def seconds(engine: Engine, sizes: Sequence[tuple[int, int]]) -> float:
    """Estimated seconds to answer prompts of (length, tokens to generate).

    Reads and decodes a short prompt, which takes a second or so. Assumes that prompts of one length
    fill their batches, and that no answer ends early.
    """
    read, step = _speed(engine)
    total = 0.0
    for length in sorted({length for length, _ in sizes}):
        new = [tokens for size, tokens in sizes if size == length]
        batches = math.ceil(len(new) / engine.rows_at_once(length))
        total += len(new) * engine.work(length) / read + batches * max(new) * step
    return total


def _speed(engine: Engine) -> tuple[float, float]:
    """Operations a second of a prefill, and seconds of a step of decoding."""
    tokens = min(PROBE_TOKENS.get(engine.device.type, 1024), max(engine.window // 2, 1))
    ids = np.random.default_rng(0).integers(0, engine.vocabulary, tokens).tolist()

    def timed(new: int) -> float:
        began = time.perf_counter()
        engine.context().complete(ids, new)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        return time.perf_counter() - began

    timed(1)  # what is loaded and compiled at a first call is not the speed
    read = timed(1)
    decoded = max(timed(1 + STEPS) - read, 0.0)
    return engine.work(tokens) / read, decoded / STEPS
