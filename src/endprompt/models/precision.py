"""Precisions: those that weights are stored in, and those that a machine is fast in."""

from __future__ import annotations

import math
import time

from endprompt.errors import EvaluationError

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Safetensors' names of the precisions that a model is used in, and torch's."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a stored weight."""
EVALUATED = ("auto", "fast", *STORED.values())
"""Precisions to evaluate in. auto: the checkpoint's own; fast: bfloat16 where this machine is fast
in it, else the checkpoint's own."""


def require_known(dtype: str) -> None:
    """Raise EvaluationError for what is none of EVALUATED."""
    if dtype not in EVALUATED:
        raise EvaluationError(f"unknown dtype {dtype!r}: one of {', '.join(EVALUATED)}")


def evaluated(dtype: str, device: str) -> str:
    """What `models.load` is given for a precision of EVALUATED. Raises EvaluationError."""
    require_known(dtype)
    if dtype == "fast":
        return "bfloat16" if fast_in_bf16(device) else "auto"
    return dtype


def fast_in_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32: on an accelerator, and on some processors.

    Many processors emulate bf16 tens of times slower than fp32, so it is measured (some 20 ms).
    The best of several times counts: another process delays some of them, hardly all, and the
    same command has to choose the same on a busy machine.
    """
    if device != "cpu":
        return True
    import torch

    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    squares = {dtype: torch.ones((384, 384), dtype=dtype) for dtype in best}
    for _ in range(9):
        for dtype, square in squares.items():
            start = time.perf_counter()
            square @ square
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.bfloat16] < best[torch.float32]
