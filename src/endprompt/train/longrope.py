"""A simple search of LongRoPE factors by the loss of the model itself.

LongRoPE searches D/2 factors by evolution (Ding et al. 2024, section 3). Here one number is
searched: the *critical pair* c of `rope.stretch`, factors s ** (j / c) below it and s from it on,
rising as LongRoPE2 asks of its own. c = 0 is linear interpolation, c = D/2 - 1 is NTK-aware
scaling, and the theory's choice lies between. A few values of c are tried, the loss over rows
that reach the target decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from endprompt import rope
from endprompt.errors import RopeError
from endprompt.train.loss import weighted_loss


@dataclass(frozen=True)
class Searched:
    """What a search found; `long_factor` goes into a recipe as `rope.long_factor`."""

    critical: int
    long_factor: list[float]
    losses: dict[int, float]
    """Mean loss in nats of every critical pair that was tried."""


def search(
    model: Any, base: rope.Base, s: float, batches: Iterable[dict[str, Tensor]], *, tries: int = 9
) -> Searched:
    """Try `tries` critical pairs, evenly spread, and keep the one with the lowest loss.

    model    unscaled, as it was loaded; left as it was found
    batches  collated rows (`data.rows.collate`) whose positions reach the target
    Costs one forward pass of every batch a try. Raises RopeError for a scaled model.
    """
    rotary = next((m for m in model.modules() if hasattr(m, "inv_freq")), None)
    if rotary is None or model.config.rope_parameters.get("rope_type", "default") != "default":
        raise RopeError("LongRoPE factors are searched on an unscaled model with RoPE")
    pairs = base.rotary_size // 2
    candidates = sorted({round(c) for c in np.linspace(0, pairs - 1, min(tries, pairs))})
    rows = list(batches)
    plain, size = rotary.inv_freq.clone(), rotary.attention_scaling
    training = model.training
    model.eval()
    losses = {}
    try:
        rotary.attention_scaling = math.sqrt(1 + math.log(s) / math.log(base.window))
        for critical in candidates:
            factors = torch.tensor(rope.stretch(base, s, critical)).to(plain)
            rotary.inv_freq.copy_(plain / factors)
            losses[critical] = _mean_loss(model, rows)
    finally:
        rotary.inv_freq.copy_(plain)
        rotary.attention_scaling = size
        model.train(training)
    best = min(losses, key=lambda critical: losses[critical])
    return Searched(best, rope.stretch(base, s, best), losses)


@torch.no_grad()
def _mean_loss(model: Any, rows: list[dict[str, Tensor]]) -> float:
    found = [weighted_loss(model, batch) for batch in rows]
    total = sum(each.weighted.item() for each in found)
    return total / sum(each.weight.item() for each in found)
