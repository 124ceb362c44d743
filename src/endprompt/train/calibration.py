"""What this machine can do, timed: a short step and prefill of a model, matmuls, attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from endprompt.cost import plan as plans
from endprompt.cost.flops import Decoder
from endprompt.cost.memory import GIB
from endprompt.io import provenance
from endprompt.models.precision import fast_in_bf16
from endprompt.train.loss import weighted_loss
from endprompt.train.position_check import batch_of

STEP_TOKENS, PREFILL_TOKENS = 256, 1024
GPU_TOKENS = 8192
"""Tokens of both on a GPU, which fewer don't fill."""


def measure(model: Any) -> dict[str, Any]:
    """Seconds of forward and backward on 256 tokens and of a forward on 1,024, best of two.

    On a GPU, where there is one and where the model is left: 8,192 tokens each, in bf16. Also the
    threads that were used, the number of parameters, bytes of the GPU, 0 without, and whether
    bf16 is faster than float32.
    """
    step_tokens, prefill_tokens, gpu_bytes = STEP_TOKENS, PREFILL_TOKENS, 0
    if torch.cuda.is_available():
        step_tokens = prefill_tokens = GPU_TOKENS
        gpu_bytes = torch.cuda.get_device_properties(0).total_memory
        model.to("cuda")
    step = batch_of(model, step_tokens)
    prefill = batch_of(model, prefill_tokens)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=bool(gpu_bytes)):
            loss = weighted_loss(model, step).weighted
        loss.backward()
        model.zero_grad(set_to_none=True)

    def read() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bool(gpu_bytes)):
            model.get_decoder()(
                input_ids=prefill["input_ids"],
                attention_mask=prefill["attention_mask"],
                use_cache=False,
            )

    return {
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gpu_bytes": gpu_bytes,
        "fast_in_bf16": fast_in_bf16("cuda" if gpu_bytes else "cpu"),
        "step_tokens": step_tokens,
        "step_seconds": min(_seconds(train) for _ in range(2)),
        "prefill_tokens": prefill_tokens,
        "prefill_seconds": min(_seconds(read) for _ in range(2)),
    }


def this_machine(decoder: Decoder) -> plans.Machine:
    """GPUs that torch sees, by their name; else the CPU, its matmuls and attention timed."""
    if torch.cuda.is_available():
        properties, known = torch.cuda.get_device_properties(0), known_gpu()
        gpu = torch.device("cuda")
        peak = known.peak if known else matmul_peak(gpu, bf16=True, times=20)
        link = known.link if known else plans.DEVICES["rtx4090"].link
        device = plans.Device(properties.name, properties.total_memory, peak, link)
        return plans.Machine(device, torch.cuda.device_count())
    machine = provenance.device()
    return plans.cpu(
        f"{machine['processor']}, {torch.get_num_threads()} threads",
        memory_bytes=machine["memory_gib"] * GIB,
        peak=matmul_peak(torch.device("cpu"), bf16=False, times=60),
        attention=attention_speed(decoder.heads, decoder.head_size),
        tokens=ATTENTION_TOKENS,
    )


def known_gpu() -> plans.Device | None:
    """This machine's first GPU in the table of makers' figures, by its name and memory."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    for device in plans.DEVICES.values():
        memory = device.memory_bytes / properties.total_memory
        if device.name.split()[0] in properties.name and abs(memory - 1) < 0.1:
            return device
    return None


def matmul_peak(device: torch.device, bf16: bool, times: int = 3) -> float:
    """Operations a second of the best of some square matmuls, in the precision that trains."""
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
