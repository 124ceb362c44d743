"""Weighted next-token loss of a batch, whoever teaches it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from endprompt.cost.flops import short_reads
from endprompt.data.rows import PREFIX
from endprompt.models import masks
from endprompt.recipe import Divergence
from endprompt.train import router
from endprompt.train.gaps import FilledGaps
from endprompt.train.head_loss import Held, weighted_sum

COSINE_WEIGHT = 10.0
"""Weight of the cosine distance against a token's loss in nats (LongReD's script)."""
GAIN_CAP = 5.0
"""What a token weighs at most by its gain from far context (gamma in LongCE)."""


@dataclass(frozen=True)
class Losses:
    """Sums over the tokens of a batch, in nats; weights apart, so that ranks can be added up."""

    weighted: Tensor
    """float[], sum of weight * loss, with its gradient."""
    weight: Tensor
    """float[], sum of the weights."""
    by_segment: Tensor
    """float[2, 2], detached: (sum of cross-entropies, tokens trained) for PREFIX and TERMINAL."""
    balance: Tensor | None = None
    """float[], load-balancing loss of a mixture of experts whose config asks for it; a mean."""


@dataclass(frozen=True)
class Labels:
    """The labels of a batch that weigh something, those of prefix tokens first.

    Found on the host: a GPU that is asked which they are has to finish what it does first.
    """

    index_N: Tensor
    """int64[N], places among the B * T labels."""
    weights_N: Tensor
    """float32[N]."""
    prefix: int
    """How many of the labels are prefix tokens."""
    counts_2: Tensor
    """float32[2], how many are prefix tokens and how many are not: on the device beforehand."""

    @classmethod
    def of(cls, batch: dict[str, Tensor]) -> Labels:
        """Those of the columns that `aligned` gave, on the host."""
        weights_L = batch["label_weights"].cpu().numpy().ravel()
        prefix_L = batch["label_segments"].cpu().numpy().ravel() == PREFIX
        parts = [np.flatnonzero((weights_L > 0) & inside_L) for inside_L in (prefix_L, ~prefix_L)]
        index = np.concatenate(parts)
        weights = weights_L[index].astype(np.float32)
        counts_2 = torch.tensor([float(len(part)) for part in parts])
        labels = cls(torch.from_numpy(index), torch.from_numpy(weights), len(parts[0]), counts_2)
        return labels.to(batch["label_weights"].device)

    def to(self, device: torch.device) -> Labels:
        """The same on another device."""
        tensors = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def pick(self, column_BT: Tensor) -> Tensor:
        """[N, ...] of a column [B, T, ...]."""
        return column_BT.flatten(0, 1).index_select(0, self.index_N)


@dataclass(frozen=True)
class Teacher:
    """What the prefix tokens are distilled from (Hinton et al. 2015).

    model       the base, in place of the text. It reads the row at contiguous positions, without
                a gradient. None: the model that trains, so read, and the text as well
                ("RoPE-perturbed self-distillation", arXiv 2604.14339)
    divergence  `forward` is KL(teacher || model), `reverse` KL(model || teacher), `cosine`
                COSINE_WEIGHT * (1 - cosine) of their last hidden states (Dong et al. 2025,
                "LongReD", as in the released script for its short-to-long distillation)
    """

    model: Any = None
    divergence: Divergence = "forward"


def weighted_loss(
    model: nn.Module, batch: dict[str, Tensor], gaps: FilledGaps | None = None
) -> Losses:
    """Loss of predicting every token of a batch, each with its own weight.

    batch  input_ids, position_ids, attention_mask int64[B, T]; loss_weights float32[B, T];
           segments uint8[B, T]. The first terminal token is predicted from the last prefix
           token, across the jump (paper, section 3.3).
    gaps   what stands in the gaps of the model's rows
    """
    columns = aligned(batch)
    return aligned_loss(model, columns, Labels.of(columns), gaps=gaps)


def aligned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with what is predicted from a token in that token's column, to be cut anywhere.

    Columns loss_weights and segments, which are of the token itself, give way to labels,
    label_weights and label_segments [B, T], of the token after it; a label that is masked, and
    that of the last column, weigh nothing.
    """
    columns = dict(batch)
    weights_BT = columns.pop("loss_weights") * batch["attention_mask"]
    of_token = {
        "labels": batch["input_ids"],
        "label_weights": weights_BT,
        "label_segments": columns.pop("segments"),
    }
    return columns | {name: F.pad(each_BT[:, 1:], (0, 1)) for name, each_BT in of_token.items()}


def aligned_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    labels: Labels,
    teacher: Teacher | None = None,
    gaps: FilledGaps | None = None,
    *,
    gain: bool = False,
) -> Losses:
    """`weighted_loss` of columns that `aligned` gave, whole or a rank's cut of them.

    labels   the labels of `batch` that weigh something
    teacher  what prefix tokens are distilled from
    gaps     what stands in the gaps of the model's rows; the teacher's have none
    gain     weigh each token also by what it gains from far context (`_gains`), without a teacher
    """
    bare: Any = getattr(model, "module", model)
    short_BTH = short_hidden(model, batch) if gain else None
    with router.logits_of(bare) as logits:
        other_NH = None if short_BTH is None else labels.pick(short_BTH)
        if teacher is not None:
            other_NH = labels.pick(teacher_hidden(teacher.model or model, batch))
        with gaps.of(bare, batch) if gaps else contextlib.nullcontext():
            sums_3 = _sums_inside(model, batch, labels, teacher, other_NH)
    balance = router.balance_loss(bare, logits, batch["attention_mask"]) if logits else None
    by_segment = torch.stack([sums_3[1:].detach(), labels.counts_2], -1)
    return Losses(sums_3[0], labels.weights_N.sum(), by_segment, balance)


def teacher_hidden(teacher: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states [B, T, H] that a teacher's head makes logits of; it reads rows without jumps.

    What a family puts on its logits is on them already.
    """
    positions_T = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    contiguous = batch | {"position_ids": positions_T.expand_as(batch["input_ids"])}
    with torch.no_grad():
        return hidden_states(teacher, contiguous)[0]


def behind_short(labels_BT: Tensor) -> Tensor:
    """bool[B, T]: labels that have more than a short context before them."""
    T = labels_BT.shape[1]
    behind_T = torch.arange(T, device=labels_BT.device) >= short_reads(T).context
    return behind_T.expand_as(labels_BT)


def short_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Hidden states [B, T, H] that predict each label from a short context.

    Of a quarter of the row, c tokens, to 2c - 1, at contiguous positions: a row is cut in pieces
    that overlap, which are read in one pass. Columns whose label has fewer than c tokens before it
    mean nothing.
    """
    B, T = batch["input_ids"].shape
    context, reads, length = short_reads(T)
    device = batch["input_ids"].device
    inside_R = torch.arange(length, device=device)
    starts_W = torch.arange(reads, device=device) * context + 1
    index_WR = (starts_W[:, None] + inside_R).clamp(max=T - 1)
    pieces = {
        "input_ids": batch["input_ids"][:, index_WR].flatten(0, 1),
        "position_ids": inside_R.expand(B * reads, length),
        "attention_mask": torch.ones(B * reads, length, dtype=torch.int64, device=device),
    }
    with torch.no_grad():
        hidden_NRH = hidden_states(model, pieces)[0]
    scored_BMH = hidden_NRH[:, context - 1 :].reshape(B, reads * context, -1)
    return torch.cat([scored_BMH[:, :context], scored_BMH], 1)[:, :T]


def _sums_inside(
    model: nn.Module,
    batch: dict[str, Tensor],
    labels: Labels,
    teacher: Teacher | None,
    other_NH: Tensor | None,
) -> Tensor:
    """float[3], made where the model's forward calls its head: what is trained, with its gradient,
    and the cross-entropies of prefix tokens and of the others.

    other_NH are hidden states of the teacher; without one, of short contexts, for gains.
    DDP, FSDP and ZeRO look after a weight inside the forward of the module that owns it and
    nowhere else: DDP reduces what is used outside twice, FSDP and ZeRO have it in parts.
    """
    bare: Any = getattr(model, "module", model)
    head = bare.get_output_embeddings()
    labels_N = labels.pick(batch["labels"])
    scale = _logit_scale(bare.config)
    with _without_logit_changes(bare.config) as cap:

        def sums(hidden_BTH: Tensor) -> Tensor:
            hidden_NH = labels.pick(hidden_BTH)
            if scale != 1:
                hidden_NH = hidden_NH * scale
            weights_N = labels.weights_N
            if teacher is not None and other_NH is not None:
                known = (other_NH, (teacher.model or bare).get_output_embeddings())
                losses = _taught(hidden_NH, head, labels_N, labels, cap, teacher, *known)
            else:
                if other_NH is not None:
                    behind_N = labels.pick(behind_short(batch["labels"]))
                    gains_N = _gains(hidden_NH, other_NH, head, labels_N, cap)
                    weights_N = weights_N * torch.where(behind_N, gains_N, 1)
                losses = weighted_sum(hidden_NH, head, labels_N, weights_N, cap=cap)
            total, plain_N = losses
            parts = plain_N.tensor_split([labels.prefix])
            sums_3 = torch.stack([total, *(part.sum() for part in parts)])
            # the family scales what its head gives, and here that is losses
            return sums_3 if scale == 1 else sums_3 / scale

        with _forward_of(head, sums):
            return _call(model, batch)


def _taught(
    hidden_NH: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    labels: Labels,
    cap: float | None,
    teacher: Teacher,
    known_NH: Tensor,
    known_head: nn.Linear,
) -> tuple[Tensor, Tensor]:
    """`weighted_sum` with prefix tokens held to a teacher."""
    first, rest = slice(0, labels.prefix), slice(labels.prefix, None)
    weights_N, text = labels.weights_N, teacher.model is None
    held, apart = None, 0.0
    if teacher.divergence == "cosine":
        pair = (hidden_NH[first].float(), known_NH[first].float())
        cosine_P = F.cosine_similarity(*pair, dim=-1)
        apart = (COSINE_WEIGHT * (1 - cosine_P) * weights_N[first]).sum()
    else:
        reverse = teacher.divergence == "reverse"
        held = Held(known_NH[first], known_head, reverse=reverse, text=text)
    trained_P = weights_N[first] if held or text else torch.zeros_like(weights_N[first])
    total, plain_P = weighted_sum(
        hidden_NH[first], head, labels_N[first], trained_P, cap=cap, held=held
    )
    others, plain_R = weighted_sum(hidden_NH[rest], head, labels_N[rest], weights_N[rest], cap=cap)
    return total + apart + others, torch.cat([plain_P, plain_R])


@torch.no_grad()
def _gains(
    hidden_NH: Tensor, short_NH: Tensor, head: nn.Linear, labels_N: Tensor, cap: float | None
) -> Tensor:
    """How many times likelier all of the row makes each label than a short context, capped.

    (Fang et al. 2025, "What is Wrong with Perplexity for Long-context Language Modeling?", LongCE)
    """
    unit_N = torch.ones(len(labels_N), device=labels_N.device)
    whole_N, short_N = (
        weighted_sum(states_NH, head, labels_N, unit_N, cap=cap)[1]
        for states_NH in (hidden_NH, short_NH)
    )
    return (short_N - whole_N).exp().clamp(max=GAIN_CAP)


def hidden_states(
    model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, nn.Linear, float | None]:
    """Last hidden states [B, T, H], the head that makes logits of them, and its soft cap.

    The model's own forward runs, so that wrappers (DDP, FSDP) see the call; its head passes
    hidden states through meanwhile. Families that cap their logits get them uncapped.
    """
    bare: Any = getattr(model, "module", model)
    head = bare.get_output_embeddings()
    with _forward_of(head, lambda hidden: hidden), _without_logit_changes(bare.config) as cap:
        return _call(model, batch), head, cap


def _call(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the head makes of the batch, the mask given so that no jump is taken for a border."""
    bare: Any = getattr(model, "module", model)
    visible = batch.get("masks")
    if visible is None:
        visible = masks.of_row(
            bare, batch["position_ids"], batch["attention_mask"], batch.get("visible")
        )
    # the balance of experts is not made of what the head gives here
    routers = {"output_router_logits": False} if router.balances(bare.config) else {}
    return model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=visible,
        use_cache=False,
        **routers,
    ).logits


def _logit_scale(config: Any) -> float:
    """Factor that a family puts on its logits (Cohere multiplies, Granite divides)."""
    return getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", 0) or 1)


@contextlib.contextmanager
def _forward_of(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Generator[None]:
    head.forward = forward
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
