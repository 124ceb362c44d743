"""Weighted next-token loss without the logits of the whole row in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from endprompt.data.rows import PREFIX, TERMINAL

CHUNK_TOKENS = 512
"""Tokens whose logits stand in memory at a time."""


@dataclass(frozen=True)
class Losses:
    """Sums over the tokens of a batch, in nats; weights apart, so that ranks can be added up."""

    weighted: Tensor
    """float[], sum of weight * loss, with its gradient."""
    weight: Tensor
    """float[], sum of the weights."""
    by_segment: Tensor
    """float[2, 2], detached: (sum of losses, tokens trained) for PREFIX and TERMINAL."""


def weighted_loss(model: nn.Module, batch: dict[str, Tensor]) -> Losses:
    """Loss of predicting every token of a batch, each with its own weight.

    batch  input_ids, position_ids, attention_mask int64[B, T]; loss_weights float32[B, T];
           segments uint8[B, T]. The first terminal token is predicted from the last prefix
           token, across the jump (paper, section 3.3).
    """
    hidden_BTH, head, cap = hidden_states(model, batch)
    weights_BT = batch["loss_weights"][:, 1:] * batch["attention_mask"][:, 1:]
    trained_BT = weights_BT > 0
    losses_N = token_losses(
        hidden_BTH[:, :-1][trained_BT], head, batch["input_ids"][:, 1:][trained_BT], cap
    )
    weights_N = weights_BT[trained_BT].to(losses_N)
    segments_N = batch["segments"][:, 1:][trained_BT]
    with torch.no_grad():
        by_segment = torch.stack(
            [
                torch.stack([losses_N[segments_N == segment].sum(), (segments_N == segment).sum()])
                for segment in (PREFIX, TERMINAL)
            ]
        )
    return Losses((losses_N * weights_N).sum(), weights_N.sum(), by_segment)


def hidden_states(
    model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, nn.Linear, float | None]:
    """Last hidden states [B, T, H], the head that makes logits of them, and its soft cap.

    The model's own forward runs, so that wrappers (DDP, FSDP) see the call; its head passes
    hidden states through meanwhile. Families that cap their logits get them uncapped.
    """
    bare: Any = getattr(model, "module", model)
    head = bare.get_output_embeddings()
    with _passing_through(head), _without_logit_changes(bare.config) as cap:
        hidden_BTH = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=batch.get("visible", batch["attention_mask"]),
            use_cache=False,
        ).logits
    return hidden_BTH, head, cap


def token_losses(hidden_NH: Tensor, head: nn.Linear, labels_N: Tensor, cap: float | None) -> Tensor:
    """Cross-entropy float[N] in nats of each label, from hidden states [N, H]."""
    if cap is None:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_TOKENS)
        return F.linear_cross_entropy(
            hidden_NH,
            head.weight,
            labels_N,
            linear_bias=head.bias,
            reduction="none",
            options=options if len(hidden_NH) > CHUNK_TOKENS else None,
        ).float()

    def of_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = head(hidden).float()
        return F.cross_entropy(cap * torch.tanh(logits / cap), labels, reduction="none")

    pairs = zip(hidden_NH.split(CHUNK_TOKENS), labels_N.split(CHUNK_TOKENS), strict=True)
    return torch.cat([checkpoint(of_chunk, *pair, use_reentrant=False) for pair in pairs])


@contextlib.contextmanager
def _passing_through(head: nn.Module) -> Generator[None]:
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


@contextlib.contextmanager
def _without_logit_changes(config: Any) -> Generator[float | None]:
    """Keep a family's changes to its logits away from the hidden states; yield its soft cap."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        config.final_logit_softcapping = None
    try:
        yield cap
    finally:
        if cap is not None:
            config.final_logit_softcapping = cap
