"""The balance of a mixture of experts, as its family has it.

Transformers adds `router_aux_loss_coef` times a load-balancing loss where the model's config says
`output_router_logits`, and nothing where it doesn't; so does training here. The logits are taken
from the routers themselves: in families with local layers, Transformers' own path wants one mask.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def balances(config: Any) -> bool:
    """Whether the family's config asks for the loss."""
    return bool(getattr(config, "output_router_logits", False))


@contextmanager
def logits_of(model: Any) -> Generator[list[Tensor]]:
    """Router logits [tokens, experts] of every layer, of the forward pass made inside.

    Empty where the config doesn't ask for the loss.
    """
    logits: list[Tensor] = []
    hooks = []
    if balances(model.config):
        recorder = model._can_record_outputs["router_logits"]

        def keep(_: Any, __: Any, output: Any) -> None:
            logits.append(output[recorder.index] if isinstance(output, tuple) else output)

        hooks = [
            module.register_forward_hook(keep)
            for module in model.modules()
            if isinstance(module, recorder.target_class)
        ]
    try:
        yield logits
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(model: Any, logits: list[Tensor], attention_mask_BT: Tensor) -> Tensor:
    """float[], the family's load-balancing loss times its coefficient; padding counts nothing."""
    config = model.config
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    own = vars(sys.modules[type(model).__module__])["load_balancing_loss_func"]
    loss = own(tuple(logits), experts, config.num_experts_per_tok, attention_mask_BT)
    return config.router_aux_loss_coef * loss
