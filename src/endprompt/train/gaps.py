"""Filled gaps: keys and values of other text between the segments of a row.

A short row with a jump has a thousand keys to choose among; a long text has as many as its
length. Here the missing keys are put where they would stand. Other text is read once, without
gradient, by the base at contiguous positions; keys are kept without RoPE (the *bank*), and
turned to a row's positions by the model's own RoPE, its attention factor included. A token
attends to what stands before it by position, in local layers to their window of it.

The base reads, not the model that trains: what is wanted is a model that reads far text as the
base reads near text, and right after scaling some models read nothing (PI). Keys are not made
again while the model changes: that would cost a read of the bank each time.

Memory is bounded by the bank, and by one segment of one row in one layer: its attention is
computed once more in the backward pass, so that no turned key is kept.

Shape letters: B rows, T tokens, G keys in gaps, N keys of the bank, H query heads, K key heads,
D head size, S queries of a segment.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from endprompt.data.gaps import lead
from endprompt.errors import TrainingError
from endprompt.models import bf16_attention, families, masks, rotation
from endprompt.models.recording import Recorded, recording
from endprompt.positions import Ints

BACKENDS = ("sdpa", "eager")
MOST_PARTS = 8
"""Parts of a row that attend apart; layouts with more segments share them, by a mask."""
_of_batch: ContextVar[BatchGaps | None] = ContextVar("gaps of the batch", default=None)


@dataclass(frozen=True)
class Bank:
    """Keys without RoPE [K, N, D] and values of some text, by the index of the layer."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]


@torch.no_grad()
def read(model: Any, family: families.Family, pieces: list[Ints]) -> Bank:
    """The bank of some texts that a model reads, each as a row of its own.

    pieces  int[T] each; of each the tokens from `data.gaps.lead` on are kept

    Raises ModelError where it isn't known how the model's keys turn.
    """
    layouts = rotation.layouts(model, family)
    banks = []
    with recording(model) as recorded:
        for piece in pieces:
            ids = torch.as_tensor(piece, device=model.device)[None]
            rows = torch.arange(len(piece), device=model.device)[None]
            mask = masks.of_row(model, rows, torch.ones_like(ids))
            model.base_model(input_ids=ids, position_ids=rows, attention_mask=mask, use_cache=False)
            angles = rotation.angles(model, family, rows, rows[0])
            banks.append(bank_of(recorded, family, layouts, angles, kept=slice(lead(piece), None)))
    return Bank(
        {i: torch.cat([bank.keys[i] for bank in banks], 1) for i in banks[0].keys},
        {i: torch.cat([bank.values[i] for bank in banks], 1) for i in banks[0].keys},
    )


def bank_of(
    recorded: Mapping[int, Recorded],
    family: families.Family,
    layouts: list[rotation.Layout | None],
    angles: list[rotation.Angles | None],
    *,
    kept: slice,
) -> Bank:
    """The bank of some tokens of a row that was recorded.

    layouts, angles  of each of `family.layers`, as `rotation` gives them; angles [T, J]
    """
    keys, values = {}, {}
    for layers, layout, turned in zip(family.layers, layouts, angles, strict=True):
        for i in layers.indices:
            key_KTD = recorded[i].key_KTD
            if layout is not None and turned is not None:
                key_KTD = layout.turn(key_KTD, rotation.inverse(turned)).to(key_KTD.dtype)
            keys[i], values[i] = key_KTD[:, kept], recorded[i].value_KTD[:, kept]
    return Bank(keys, values)


class FilledGaps:
    """A model whose rows find the keys of a bank in their gaps.

    The model's attention becomes one that knows of gaps, and is the family's own without them.
    Raises TrainingError for an attention other than sdpa and eager, ModelError as `read` does.
    """

    def __init__(self, model: Any, family: families.Family, bank: Bank) -> None:
        inner = model.config._attn_implementation
        if inner not in BACKENDS:
            raise TrainingError(
                f"rows.gaps filled runs with attention {' and '.join(BACKENDS)}, not with "
                f"{inner!r}: load the model with one of them or set rows.gaps to empty"
            )
        self.bank, self._family = bank, family
        self._layouts = rotation.layouts(model, family)
        self._group = {i: n for n, layers in enumerate(family.layers) for i in layers.indices}
        model.set_attn_implementation(_register(inner))

    def holding(self, bank: Bank) -> FilledGaps:
        """The same with another bank."""
        other = copy.copy(self)
        other.bank = bank
        return other

    @contextmanager
    def of(self, model: Any, batch: dict[str, Tensor]) -> Generator[None]:
        """Inside, a forward pass of this batch finds what stands in its gaps.

        batch  position_ids, attention_mask int64[B, T]; gap_positions, gap_slots int64[B, G]
        """
        rows_BT, gaps_BG = batch["position_ids"], batch["gap_positions"]
        angles = rotation.angles(model, self._family, rows_BT, gaps_BG.clamp_min(0))
        lengths = batch["attention_mask"].sum(-1).tolist()
        rows = []
        for b, length in enumerate(lengths):
            count = int((gaps_BG[b] >= 0).sum())
            row_T, gap_G = rows_BT[b, :length], gaps_BG[b, :count]
            parts = {
                layers.span: _parts(row_T.cpu().numpy(), gap_G.cpu().numpy(), layers.span)
                for layers in self._family.layers
            }
            turns = [angle and (angle[0][b, :count], angle[1][b, :count]) for angle in angles]
            rows.append(_Row(row_T, gap_G, batch["gap_slots"][b, :count], turns, parts))
        token = _of_batch.set(BatchGaps(self, rows))
        try:
            yield
        finally:
            _of_batch.reset(token)


@dataclass(frozen=True)
class _Part:
    """Queries of a row that attend together, and the keys that one of them sees.

    first, last          indices in the row
    own, gap, gap_last   own keys `own` .. last, keys `gap` .. `gap_last` of the gaps
    alike                each query sees all of those of the gaps, and all of its own before it
    """

    first: int
    last: int
    own: int
    gap: int
    gap_last: int
    alike: bool


@dataclass(frozen=True)
class _Row:
    positions_T: Tensor
    gap_positions_G: Tensor
    slots_G: Tensor
    turns: list[rotation.Angles | None]
    """Of each of the family's layers: angles [G, J]."""
    parts: dict[int | None, list[_Part]]
    """By how far a layer sees."""


def _parts(row_T: Ints, gap_G: Ints, span: int | None) -> list[_Part]:
    """Cut a row where keys of a gap come between its tokens."""
    before_T = np.searchsorted(gap_G, row_T)
    starts = np.flatnonzero(np.diff(before_T, prepend=-1))
    if len(starts) > MOST_PARTS:
        starts = starts[np.arange(MOST_PARTS) * len(starts) // MOST_PARTS]
    parts = []
    for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(row_T)], strict=True):
        own = gap = 0
        if span is not None:
            own, gap = (int(np.searchsorted(keys, row_T[first] - span + 1))
                        for keys in (row_T, gap_G))  # fmt: skip
        seen = int(before_T[last - 1])
        alike = span is None and before_T[first] == seen
        parts.append(_Part(first, last, own, gap, seen, alike))
    return parts


class BatchGaps:
    """What stands in the gaps of a batch; goes through the model in the place of its mask."""

    def __init__(self, gaps: FilledGaps, rows: list[_Row]) -> None:
        self._gaps, self._rows = gaps, rows

    def attend(
        self, inner: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, rest: Any
    ) -> Tensor:
        """Attention [B, T, H, D] of queries [B, H, T, D] to keys, values [B, K, T, D] and gaps."""
        layer = module.layer_idx
        group = self._gaps._group[layer]
        span = self._gaps._family.layers[group].span
        rows = []
        for b, row in enumerate(self._rows):
            done = []
            for part in row.parts[span]:
                reach = functools.partial(self._reach, inner, module, row, part, span, group, rest)
                given = (
                    query[b : b + 1, :, part.first : part.last],
                    key[b : b + 1, :, part.own : part.last],
                    value[b : b + 1, :, part.own : part.last],
                )
                if part.gap < part.gap_last and torch.is_grad_enabled():
                    random = bool(rest.get("dropout"))
                    out = checkpoint(reach, *given, use_reentrant=False, preserve_rng_state=random)
                else:
                    out = reach(*given)
                done.append(out)
            out_THD = torch.cat(done, 1)[0]
            padding = query.shape[2] - len(out_THD)
            rows.append(torch.nn.functional.pad(out_THD, (0, 0, 0, 0, 0, padding)))
        return torch.stack(rows)

    def _reach(
        self, inner: Any, module: Any, row: _Row, part: _Part, span: int | None, group: int,
        rest: Any, query: Tensor, key: Tensor, value: Tensor,
    ) -> Tensor:  # fmt: skip
        """Attention [1, S, H, D] of one part to its own keys and those in gaps before it."""
        seen = slice(part.gap, part.gap_last)
        if part.gap < part.gap_last:
            slots_G, layer = row.slots_G[seen], module.layer_idx
            gap_key = self._gaps.bank.keys[layer][:, slots_G]
            layout, turns = self._gaps._layouts[group], row.turns[group]
            if layout is not None and turns is not None:
                gap_key = layout.turn(gap_key, (turns[0][seen], turns[1][seen]))
            gap_value = self._gaps.bank.values[layer][:, slots_G]
            key = torch.cat([gap_key[None].to(key), key], 2)
            value = torch.cat([gap_value[None].to(value), value], 2)
        plain = not rest.get("dropout") and rest.get("position_bias") is None
        if part.alike and plain and inner is sdpa_attention_forward:
            out = bf16_attention.of_last(query, key, value, rest.get("scaling"))
            if out is not None:
                return out
        asks_S = row.positions_T[part.first : part.last, None]
        keys = torch.cat([row.gap_positions_G[seen], row.positions_T[part.own : part.last]])
        visible = keys <= asks_S
        if span is not None:
            visible &= asks_S - keys < span
        mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
        mask.masked_fill_(~visible, torch.finfo(query.dtype).min)
        return inner(module, query, key, value, mask[None, None], **rest)[0]


def _register(inner: str) -> str:
    """Make attention that knows of gaps known to Transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    name = f"endprompt_filled_{inner}"
    AttentionInterface.register(name, functools.partial(_forward, backend=inner))
    plain = {"sdpa": sdpa_mask, "eager": eager_mask}[inner]

    def mask(*arguments: Any, **named: Any) -> Any:
        return _of_batch.get() or plain(*arguments, **named)

    AttentionMaskInterface.register(name, mask)
    return name


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *,
    backend: str, **rest: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The signature of Transformers' attention interface; returns float[B, T, H, D]."""
    inner = sdpa_attention_forward
    if backend == "eager":  # with the family's sinks and caps
        inner = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    if isinstance(attention_mask, BatchGaps):
        return attention_mask.attend(inner, module, query, key, value, rest), None
    return inner(module, query, key, value, attention_mask, **rest)
