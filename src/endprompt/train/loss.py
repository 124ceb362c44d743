"""Weighted next-token loss without the logits of the whole row in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from endprompt.cost.flops import short_reads
from endprompt.cost.memory import CHUNK_TOKENS
from endprompt.data.rows import PREFIX, TERMINAL
from endprompt.models import masks
from endprompt.recipe import Divergence
from endprompt.train import router
from endprompt.train.gaps import FilledGaps

COSINE_WEIGHT = 10.0
"""Weight of the cosine distance against a token's loss in nats (LongReD's script)."""
GAIN_CAP = 5.0
"""What a token weighs at most by its gain from far context (gamma in LongCE)."""
SUMS = 4
"""Up to so many sums of losses are made each with its gradient at once; more, token by token."""


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
    """The labels of a batch that weigh something, in groups of one segment and weight.

    Found on the host: a GPU that is asked which they are has to finish what it does first.
    """

    index_N: Tensor
    """int64[N], places among the B * T labels, group by group."""
    group_N: Tensor
    """int64[N]."""
    sizes: list[int]
    """Labels of each group."""
    sizes_G: Tensor
    weights_G: Tensor
    """float32[G] both."""
    inside_2G: Tensor
    """float32[2, G], 1 where a group lies in PREFIX, in TERMINAL."""

    @classmethod
    def of(cls, batch: dict[str, Tensor]) -> Labels:
        """Those of the columns that `aligned` gave, on the batch's device."""
        device = batch["label_weights"].device
        columns = (batch["label_segments"], batch["label_weights"])
        kinds = np.stack([column.cpu().numpy().ravel().astype(np.float32) for column in columns])
        index = np.flatnonzero(kinds[1] > 0)
        kinds, group, sizes = np.unique(
            kinds[:, index], axis=1, return_inverse=True, return_counts=True
        )
        order = np.argsort(group.ravel(), kind="stable")
        inside = np.stack([kinds[0] == segment for segment in (PREFIX, TERMINAL)])
        labels = cls(
            torch.from_numpy(index[order]),
            torch.from_numpy(group.ravel()[order]),
            sizes.tolist(),
            torch.from_numpy(sizes.astype(np.float32)),
            torch.from_numpy(kinds[1]),
            torch.from_numpy(inside.astype(np.float32)),
        )
        return labels.to(device)

    def to(self, device: torch.device) -> Labels:
        """The same on another device."""
        tensors = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Labels(**{**vars(self), **tensors})

    def pick(self, column_BT: Tensor) -> Tensor:
        """[N, ...] of a column [B, T, ...]."""
        return column_BT.flatten(0, 1).index_select(0, self.index_N)

    def sums(self, losses: Tensor) -> Tensor:
        """[..., G] of each group, from [..., N]."""
        return losses.new_zeros(*losses.shape[:-1], len(self.sizes)).index_add(
            -1, self.group_N, losses
        )


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
    gain     weigh each token also by what it gains from far context (`gains`), without a teacher
    """
    bare: Any = getattr(model, "module", model)
    short_BTH = short_hidden(model, batch) if gain else None
    with router.logits_of(bare) as logits:
        other_NH = None if short_BTH is None else labels.pick(short_BTH)
        if teacher is not None:
            other_NH = labels.pick(teacher_hidden(teacher.model or model, batch))
        with gaps.of(bare, batch) if gaps else contextlib.nullcontext():
            sums_G, plain_G = _losses_inside(model, batch, labels, teacher, other_NH)
    balance = router.balance_loss(bare, logits, batch["attention_mask"]) if logits else None
    sizes_G, weights_G = labels.sizes_G, labels.weights_G
    by_segment = torch.stack(
        [(labels.inside_2G * part_G.detach()).sum(-1) for part_G in (plain_G, sizes_G)], -1
    )
    return Losses((sums_G * weights_G).sum(), (sizes_G * weights_G).sum(), by_segment, balance)


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


def gains(short_N: Tensor, whole_N: Tensor) -> Tensor:
    """How many times likelier all of the row makes each label than a short context, capped.

    Of losses in nats, without a gradient (Fang et al. 2025, "What is Wrong with Perplexity for
    Long-context Language Modeling?", LongCE).
    """
    return (short_N - whole_N.detach()).exp().clamp(max=GAIN_CAP)


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


def _losses_inside(
    model: nn.Module,
    batch: dict[str, Tensor],
    labels: Labels,
    teacher: Teacher | None,
    other_NH: Tensor | None,
) -> Tensor:
    """Sums float[2, G] over the trained tokens, made where the model's forward calls its head.

    First of what is trained, then of cross-entropies, which are the same without a teacher.
    other_NH are hidden states of the teacher; without one, of short contexts, for gains.
    DDP, FSDP and ZeRO look after a weight inside the forward of the module that owns it and
    nowhere else: DDP reduces what is used outside twice, FSDP and ZeRO have it in parts.
    """
    bare: Any = getattr(model, "module", model)
    head = bare.get_output_embeddings()
    labels_N = labels.pick(batch["labels"])
    scale = _logit_scale(bare.config)
    with _without_logit_changes(bare.config) as cap:

        def losses(hidden_BTH: Tensor) -> Tensor:
            hidden_NH = labels.pick(hidden_BTH)
            if scale != 1:
                hidden_NH = hidden_NH * scale
            if other_NH is None:
                sums_G = group_losses(hidden_NH, head, labels_N, cap, labels)
                found_2G = torch.stack([sums_G, sums_G.detach()])
            elif teacher is None:
                losses_N = token_losses(hidden_NH, head, labels_N, cap)
                with torch.no_grad():
                    short_N = token_losses(other_NH, head, labels_N, cap)
                    behind_N = labels.pick(behind_short(batch["labels"]))
                    short_N = torch.where(behind_N, short_N, losses_N)
                gained_N = losses_N * gains(short_N, losses_N)
                found_2G = labels.sums(torch.stack([gained_N, losses_N.detach()]))
            else:
                distilled_2N = teacher_losses(
                    hidden_NH,
                    head,
                    labels_N,
                    cap,
                    other_NH,
                    (teacher.model or bare).get_output_embeddings(),
                    teacher,
                    labels.pick(batch["label_segments"]) == PREFIX,
                )
                found_2G = labels.sums(distilled_2N)
            # the family scales what its head gives, and here that is losses
            return found_2G if scale == 1 else found_2G / scale

        with _forward_of(head, losses):
            return _call(model, batch)


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


def group_losses(
    hidden_NH: Tensor, head: nn.Linear, labels_N: Tensor, cap: float | None, labels: Labels
) -> Tensor:
    """Cross-entropy float[G] in nats, summed over the labels of each group.

    Few groups are taken one by one: the gradient of a sum is made beside it, where losses of
    single tokens make the logits of every chunk a second time in the backward pass. A head that
    sharding holds in bf16 would round each sum to three digits, so that it goes by tokens too.
    """
    narrow = torch.finfo(head.weight.dtype).bits < 32 or _in_bf16_on_cpu(hidden_NH)
    if narrow or cap is not None or not 0 < len(labels.sizes) <= SUMS:
        return labels.sums(token_losses(hidden_NH, head, labels_N, cap))
    groups = zip(hidden_NH.split(labels.sizes), labels_N.split(labels.sizes), strict=True)
    return torch.stack([_cross_entropy(*group, head, "sum") for group in groups])


def token_losses(hidden_NH: Tensor, head: nn.Linear, labels_N: Tensor, cap: float | None) -> Tensor:
    """Cross-entropy float[N] in nats of each label, from hidden states [N, H]."""
    if cap is None and not _in_bf16_on_cpu(hidden_NH):
        return _cross_entropy(hidden_NH, labels_N, head, "none")

    def of_chunk(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_logits(hidden, head, cap), labels, reduction="none")

    pairs = zip(hidden_NH.split(CHUNK_TOKENS), labels_N.split(CHUNK_TOKENS), strict=True)
    return torch.cat([checkpoint(of_chunk, *pair, use_reentrant=False) for pair in pairs])


def teacher_losses(
    hidden_NH: Tensor,
    head: nn.Linear,
    labels_N: Tensor,
    cap: float | None,
    teacher_NH: Tensor,
    teacher_head: nn.Linear,
    teacher: Teacher,
    prefix_N: Tensor,
) -> Tensor:
    """float[2, N]: what is trained of each token, and its cross-entropy in nats, detached.

    teacher_NH, teacher_head  the teacher's hidden states and head
    prefix_N            bool, tokens that are distilled from the teacher
    """

    def of_chunk(hidden: Tensor, labels: Tensor, base: Tensor, prefix: Tensor) -> Tensor:
        said = _logits(hidden, head, cap).log_softmax(-1)
        plain = F.nll_loss(said, labels, reduction="none")
        if teacher.divergence == "cosine":
            cosine = F.cosine_similarity(hidden.float(), base.float(), dim=-1)
            apart = COSINE_WEIGHT * (1 - cosine)
        else:
            with torch.no_grad():
                known = _logits(base, teacher_head, cap).log_softmax(-1)
            pair = (known, said) if teacher.divergence == "reverse" else (said, known)
            apart = F.kl_div(*pair, reduction="none", log_target=True).sum(-1)
        if teacher.model is None:
            apart = apart + plain
        return torch.stack([torch.where(prefix, apart, plain), plain.detach()])

    columns = (hidden_NH, labels_N, teacher_NH, prefix_N)
    chunks = zip(*(column.split(CHUNK_TOKENS) for column in columns), strict=True)
    return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks], dim=1)


def _logits(hidden_NH: Tensor, head: nn.Linear, cap: float | None) -> Tensor:
    """float32[N, V] in spite of a head that is replaced for the time being."""
    logits_NV = F.linear(hidden_NH, head.weight, head.bias).float()
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def _in_bf16_on_cpu(hidden: Tensor) -> bool:
    """Autocast reaches the head's matmul alone, not one that is fused with its loss: in float32
    those take a third of a CPU's step."""
    return not hidden.is_cuda and torch.is_autocast_enabled("cpu")


def _cross_entropy(hidden_NH: Tensor, labels_N: Tensor, head: nn.Linear, reduction: str) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_TOKENS)
    autocast = hidden_NH.is_cuda and torch.is_autocast_enabled("cuda")
    with tf32_matmuls() if autocast else contextlib.nullcontext():
        return F.linear_cross_entropy(
            hidden_NH.to(head.weight.dtype),  # which sharding may hold in bf16
            head.weight,
            labels_N,
            linear_bias=head.bias,
            reduction=reduction,
            options=options if len(hidden_NH) > CHUNK_TOKENS else None,
        ).float()


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
