"""The loss of last hidden states, chunk by chunk, with its gradient beside it.

The logits of a row are larger than all else in memory, so they are made some tokens at a time. Each
token's weight is known beforehand: the gradient of the weighted sum is taken while the logits of a
chunk are there, and they are made once. Torch's `linear_cross_entropy` does so for plain sums of
cross-entropies, not for a teacher's, a soft cap or bfloat16.

Shape letters: N tokens, H hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from endprompt.cost.memory import CHUNK_TOKENS


@dataclass(frozen=True)
class Held:
    """What tokens are held to in place of the text, or beside it.

    hidden_NH, head  of the teacher
    reverse          KL(model || teacher); otherwise KL(teacher || model)
    text             the text's cross-entropy is trained as well
    """

    hidden_NH: Tensor
    head: nn.Linear
    reverse: bool = False
    text: bool = False


def weighted_sum(
    hidden_NH: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    weights_N: Tensor,
    *,
    cap: float | None = None,
    held: Held | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of weight * loss, float[] with its gradient, and cross-entropies float[N] without, nats.

    head      its matmuls are made in bfloat16 under autocast on a CPU, on a GPU in TF32
    cap       a family's soft cap on its logits
    held      None: the loss is the cross-entropy of the labels
    """
    losses: tuple[Tensor, Tensor] = _WeightedSum.apply(
        hidden_NH, head.weight, head.bias, labels_N, weights_N, cap, held
    )
    return losses


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor,
        cap: float | None,
        held: Held | None,
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(hidden_NH, weight_VH, bias_V, cap)
        teacher = None
        if held:
            teacher = _Logits(held.hidden_NH, held.head.weight, held.head.bias, cap)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        kind = torch.promote_types(logits.hidden_NH.dtype, torch.float32)
        of_hidden = torch.empty_like(hidden_NH) if for_hidden else None
        of_weight = weight_VH.new_zeros(weight_VH.shape, dtype=kind) if for_weight else None
        of_bias = weight_VH.new_zeros(len(weight_VH), dtype=kind) if for_bias else None
        total = hidden_NH.new_zeros((), dtype=kind)
        plain_N = hidden_NH.new_empty(len(hidden_NH), dtype=kind)
        for start in range(0, len(hidden_NH), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            said_CV, labels_C, weights_C = logits.of(part), labels_N[part], weights_N[part]
            slope_CV = None if cap is None else 1 - (said_CV / cap).square()
            label_C = said_CV.gather(-1, labels_C[:, None])[:, 0]
            if held and teacher:
                loss_C, toward_CV, lse_C = _divergence(said_CV, teacher.of(part), held.reverse)
                if held.text:
                    loss_C, toward_CV = loss_C + lse_C - label_C, toward_CV + said_CV
            else:
                toward_CV, lse_C = said_CV, _softmax_(said_CV)
                loss_C = lse_C - label_C
            if held is None or held.text:
                toward_CV[torch.arange(len(labels_C), device=labels_C.device), labels_C] -= 1
            plain_N[part] = lse_C - label_C
            total += (loss_C * weights_C).sum()
            if not any(ctx.needs_input_grad[:3]):
                continue
            toward_CV.mul_(weights_C[:, None])
            if slope_CV is not None:
                toward_CV.mul_(slope_CV)
            with logits.matmuls():
                narrow_CV = toward_CV.to(logits.hidden_NH.dtype)
                if of_hidden is not None:
                    of_hidden[part] = narrow_CV @ logits.weight_VH
                if of_weight is not None and of_weight.dtype == narrow_CV.dtype:
                    of_weight.addmm_(narrow_CV.T, logits.hidden_NH[part])
                elif of_weight is not None:
                    of_weight += narrow_CV.T @ logits.hidden_NH[part]
            if of_bias is not None:
                of_bias += toward_CV.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.kinds = [None if weight is None else weight.dtype for weight in (weight_VH, bias_V)]
        ctx.mark_non_differentiable(plain_N)
        return total, plain_N

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight, of_bias = (
            None if of is None else of * grads[0].to(of.dtype) for of in ctx.saved_tensors
        )
        weight, bias = ctx.kinds
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight),
            None if of_bias is None else of_bias.to(bias),
            None, None, None, None,
        )  # fmt: skip


class _Logits:
    """Logits of hidden states, in chunks: float32 whatever the matmuls are made in."""

    def __init__(
        self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, cap: float | None
    ) -> None:
        self._device = hidden_NH.device.type
        kind = weight_VH.dtype  # sharding may hold it in bf16
        on_cpu = self._device == "cpu"
        if on_cpu and torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
        self._tf32 = self._device == "cuda" and torch.is_autocast_enabled("cuda")
        self.hidden_NH, self.weight_VH = hidden_NH.to(kind), weight_VH.to(kind)
        self._bias_V, self._cap = bias_V, cap

    @contextlib.contextmanager
    def matmuls(self) -> Generator[None]:
        """Inside, matmuls are made in the dtype of their inputs, or in TF32."""
        with (
            torch.autocast(self._device, enabled=False),
            tf32_matmuls() if self._tf32 else contextlib.nullcontext(),
        ):
            yield

    def of(self, part: slice) -> Tensor:
        """[C, V] of some tokens."""
        with self.matmuls():
            logits_CV = F.linear(self.hidden_NH[part], self.weight_VH)
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        if self._bias_V is not None:
            logits_CV = logits_CV + self._bias_V
        if self._cap is not None:
            logits_CV = logits_CV.div(self._cap).tanh_().mul_(self._cap)
        return logits_CV


def _softmax_(logits_CV: Tensor) -> Tensor:
    """Turn logits into probabilities in place; returns their log-sum-exps [C]."""
    most_C, place_C = logits_CV.max(-1)
    torch.softmax(logits_CV, -1, out=logits_CV)
    return most_C - logits_CV.gather(-1, place_C[:, None])[:, 0].log()


def _divergence(said_CV: Tensor, known_CV: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """KL [C] of logits, its gradient [C, V] for `said`, and the log-sum-exps [C] of `said`.

    `said` is turned into probabilities.
    """
    further_CV = known_CV - said_CV
    said_lse_C, known_lse_C = _softmax_(said_CV), _softmax_(known_CV)
    of_CV = said_CV if reverse else known_CV
    further_C = torch.bmm(of_CV[:, None], further_CV[..., None])[:, 0, 0]
    further_C = further_C + said_lse_C - known_lse_C
    if not reverse:
        return further_C, torch.sub(said_CV, known_CV, out=known_CV), said_lse_C
    # p (log p - log q - KL)
    shift_C = known_lse_C - said_lse_C + further_C
    return -further_C, further_CV.neg_().add_(shift_C[:, None]).mul_(said_CV), said_lse_C


@contextlib.contextmanager
def tf32_matmuls() -> Generator[None]:
    """Float32 matmuls of a GPU in TF32, for a head that autocast does not reach (docs/log.md)."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
