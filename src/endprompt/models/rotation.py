"""RoPE outside of the model: undone on its keys, and applied again at other positions.

Where the turned numbers of a head lie differs by family (first or last numbers, pairs half a head
apart or side by side). It is measured on the model, not assumed; a family whose keys turn in none
of these ways is refused.

Shape letters: B rows, G keys, J pairs, K key heads, T tokens, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from endprompt.errors import ModelError, ProbeError
from endprompt.models import families, masks
from endprompt.models.recording import recording

Angles = tuple[Tensor, Tensor]
"""cos and sin [..., J], times the factor that a scaling puts on both."""
SHIFT, TOKENS = 40, 24
"""How far a row is moved to see how its keys turn, and its length: small, so that float32
resolves the angles."""


@dataclass(frozen=True)
class Layout:
    """Which numbers of a head RoPE turns.

    size         R, an even number
    last         the last R of the head, else the first
    side_by_side pairs are (0, 1), (2, 3), ..., else (0, R/2), (1, R/2 + 1), ...
    """

    size: int
    last: bool
    side_by_side: bool

    def pairs(self, x_GD: Tensor) -> tuple[Tensor, Tensor]:
        """First and second numbers of the pairs that are turned, [..., G, J] each."""
        part = self._split(x_GD)[1]
        if self.side_by_side:
            return part[..., 0::2], part[..., 1::2]
        first, second = part.chunk(2, dim=-1)
        return first, second

    def turn(self, x_GD: Tensor, angles: Angles) -> Tensor:
        """float[..., G, D] turned by angles [..., G, J]."""
        cos, sin = angles
        a, b = self.pairs(x_GD)
        turned = [a * cos - b * sin, a * sin + b * cos]
        before, _, after = self._split(x_GD)
        part = torch.stack(turned, -1).flatten(-2) if self.side_by_side else torch.cat(turned, -1)
        return torch.cat([before, part, after], -1)

    def _split(self, x_GD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies before, in and behind the numbers that are turned."""
        start = x_GD.shape[-1] - self.size if self.last else 0
        end = start + self.size
        return x_GD[..., :start], x_GD[..., start:end], x_GD[..., end:]


def candidates(size: int) -> list[Layout]:
    """Every layout of so many turned numbers that is known."""
    return [Layout(size, *ways) for ways in product((False, True), repeat=2)]


def inverse(angles: Angles) -> Angles:
    """The angles that undo a turn, its factor included."""
    cos, sin = angles
    squared = cos.square() + sin.square()
    return cos / squared, -sin / squared


def embedding(model: Any) -> Any:
    """The module that makes cos and sin. Raises ProbeError for a model without."""
    for module in model.modules():
        if hasattr(module, "rope_type") and any(
            name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)
        ):
            return module
    raise ProbeError(f"model type {model.config.model_type!r} has no rotary embedding")


def angles(
    model: Any, family: families.Family, rows_BT: Tensor, positions: Tensor
) -> list[Angles | None]:
    """Angles [..., J] at some positions [...], for each of `family.layers`; None without RoPE.

    rows_BT  positions of the rows that are read: some scalings go by the highest of them

    As the model makes them: float32, by the frequencies that it holds.
    """
    module = embedding(model)
    turned: list[Angles | None] = []
    for layers in family.layers:
        if layers.parameters is None:
            turned.append(None)
            continue
        kind = (layers.kind,) if family.by_kind else ()
        module(torch.zeros(1, 1, 1, device=rows_BT.device), rows_BT, *kind)
        turns_J = getattr(module, "_".join((*kind, "inv_freq"))).float().to(positions.device)
        factor = getattr(module, "_".join((*kind, "attention_scaling")), 1.0)
        angle = positions[..., None].float() * turns_J
        turned.append((angle.cos() * factor, angle.sin() * factor))
    return turned


@torch.no_grad()
def layouts(model: Any, family: families.Family) -> list[Layout | None]:
    """How the keys of each of `family.layers` turn; None without RoPE.

    A row is read at two places: keys that are turned from one to the other have to be equal, as
    far as the model's precision tells.
    Raises ModelError, by name, where they are in no way that is known.
    """
    device = model.device
    ids = torch.randint(3, max(model.config.vocab_size, 8), (1, TOKENS), device=device)
    here = torch.arange(TOKENS, device=device)[None]
    keys, turns = [], []
    with recording(model) as recorded:
        for rows in (here, here + SHIFT):
            mask = masks.of_row(model, rows, torch.ones_like(ids))
            model.base_model(input_ids=ids, position_ids=rows, attention_mask=mask, use_cache=False)
            keys.append({i: layer.key_KTD.float() for i, layer in recorded.items()})
            turns.append(angles(model, family, rows, rows[0]))
    equal = max(1e-3, 8 * torch.finfo(model.dtype).eps)
    measured: list[Layout | None] = []
    for n, layers in enumerate(family.layers):
        near, far = turns[0][n], turns[1][n]
        if near is None or far is None:
            measured.append(None)
            continue
        errors = {
            layout: max(
                _error(layout, keys[0][i], near, keys[1][i], far) if i in keys[0] else torch.inf
                for i in layers.indices
            )
            for layout in candidates(2 * near[0].shape[-1])
        }
        best = min(errors, key=lambda layout: errors[layout])
        if errors[best] > equal:
            raise ModelError(
                f"keys in {layers.name} layers of model type {family.model_type!r} turn in no way "
                f"that is known (nearest: {errors[best]:.2g} off): set rows.gaps to empty"
            )
        measured.append(best)
    return measured


def _error(layout: Layout, near_KTD: Tensor, near: Angles, far_KTD: Tensor, far: Angles) -> float:
    """Difference of keys and of those turned from the other place, as a part of their size."""
    if near_KTD.shape[-1] < layout.size:
        return torch.inf
    moved_KTD = layout.turn(layout.turn(near_KTD, inverse(near)), far)
    return float((moved_KTD - far_KTD).norm() / far_KTD.norm().clamp_min(1e-30))
