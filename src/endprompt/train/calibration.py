"""Time a short step and a short prefill of the loaded model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from endprompt.train.loss import weighted_loss
from endprompt.train.probe import batch_of

STEP_TOKENS, PREFILL_TOKENS = 256, 1024


def measure(model: Any) -> dict[str, float]:
    """Seconds of forward and backward on 256 tokens and of a forward on 1,024, best of two.

    Also the threads that were used and the number of parameters.
    """
    step = batch_of(model, STEP_TOKENS)
    prefill = batch_of(model, PREFILL_TOKENS)

    def train() -> None:
        weighted_loss(model, step).weighted.backward()
        model.zero_grad(set_to_none=True)

    def read() -> None:
        with torch.no_grad():
            model.get_decoder()(
                input_ids=prefill["input_ids"],
                attention_mask=prefill["attention_mask"],
                use_cache=False,
            )

    return {
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_tokens": STEP_TOKENS,
        "step_seconds": min(_seconds(train) for _ in range(2)),
        "prefill_tokens": PREFILL_TOKENS,
        "prefill_seconds": min(_seconds(read) for _ in range(2)),
    }


def matmul_peak(device: torch.device, bf16: bool, times: int = 3) -> float:
    """Operations a second of the best of some square products, in the precision that trains."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.empty(size, size, device=device, dtype=dtype).fill_(0.5) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right) for _ in range(times))


ATTENTION_TOKENS = 2048


def attention_speed(
    heads: int, head_size: int, times: int = 2, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Operations a second of causal attention on a CPU, forward and backward in float32.

    On one row of ATTENTION_TOKENS tokens; counted as `flops.attention` counts them.
    """
    shape = (1, heads, ATTENTION_TOKENS, head_size)
    parts = [torch.full(shape, 0.5, requires_grad=True) for _ in range(3)]

    def work() -> None:
        query, key, value = parts
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out.sum().backward()

    operations = 3 * 4 * heads * head_size * ATTENTION_TOKENS**2 / 2
    return operations / min(_seconds(work, clock) for _ in range(times))


def _seconds(work: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began
