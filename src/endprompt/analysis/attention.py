"""What attention does with distance, measured on a loaded model.

Queries and keys are taken where the model computes attention, after RoPE, through Transformers'
attention interface, and turned back: so every model that uses the interface can be looked at,
whatever it does to queries and keys before RoPE.

Shape letters: T tokens, H query heads, D head size, N pairs, J frequencies, E distance bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from endprompt import rope, theory
from endprompt.models import masks
from endprompt.models.recording import recording

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """Queries and keys of one layer, rotated, [H, T, D], keys repeated for each head.

    In the model's own precision, or in float32 where that is less.
    """

    query_HTD: NDArray[Any]
    key_HTD: NDArray[Any]
    scaling: float
    """What the product of query and key is multiplied by: 1 / sqrt(D) in most models."""


@dataclass(frozen=True)
class Contents:
    """The same before rotation, float64[H, T, D].

    `scaling` takes in the factor that RoPE puts on cos and sin, once for each of the two.
    """

    query_HTD: Floats
    key_HTD: Floats
    scaling: float
    frequency_J: Floats
    """Radians a position of each pair; pairs that the model doesn't rotate have 0."""

    def polynomial(self, head: int, query_N: Any, key_N: Any) -> tuple[Floats, Floats]:
        """Amplitudes and phases [N, J] of the score between tokens, in units of the logits."""
        amplitude, phase = theory.polynomial(
            self.query_HTD[head, query_N], self.key_HTD[head, key_N]
        )
        return amplitude * self.scaling, phase


@torch.no_grad()
def record(model: Any, input_ids_T: Sequence[int], positions_T: Any = None) -> list[Layer]:
    """Run one row through a model and keep the queries and keys of every layer.

    positions_T  int[T]; None: 0 .. T-1
    """
    ids = torch.as_tensor(np.asarray(input_ids_T), device=model.device)[None]
    positions = torch.arange(ids.shape[1]) if positions_T is None else torch.as_tensor(positions_T)
    positions_1T = positions.to(model.device)[None]
    with recording(model) as recorded:
        model.base_model(
            input_ids=ids,
            position_ids=positions_1T,
            attention_mask=masks.of_row(model, positions_1T, torch.ones_like(ids)),
            use_cache=False,
        )
    return [
        Layer(
            _array(layer.query_HTD),
            _array(
                layer.key_KTD.repeat_interleave(len(layer.query_HTD) // len(layer.key_KTD), dim=0)
            ),
            layer.scaling,
        )
        for _, layer in sorted(recorded.items())
    ]


def _array(x: Tensor) -> NDArray[Any]:
    return (x if x.dtype == torch.float64 else x.float()).cpu().numpy()


def unrotate(layer: Layer, positions_T: Any, parameters: dict[str, Any], base: rope.Base,
             ) -> Contents:  # fmt: skip
    """Queries and keys before RoPE, for the `rope_parameters` that the model ran with."""
    positions = np.asarray(positions_T, dtype=np.float64)
    w, size = rope.inverse_frequencies(
        parameters, base.rotary_size, length=int(positions.max()) + 1, window=base.window
    )
    back_TJ = np.exp(-1j * np.outer(positions, w)) / size

    def turned(x_HTD: NDArray[Any]) -> Floats:
        half, R = base.rotary_size // 2, base.rotary_size
        z = (x_HTD[..., :half] + 1j * x_HTD[..., half:R]) * back_TJ
        rest = x_HTD[..., R:] / size  # which RoPE has not multiplied
        tail = rest.shape[-1] // 2  # unrotated dimensions become pairs that don't turn
        return np.concatenate([z.real, rest[..., :tail], z.imag, rest[..., tail:]], axis=-1)

    still = (layer.query_HTD.shape[-1] - base.rotary_size) // 2
    return Contents(
        turned(layer.query_HTD),
        turned(layer.key_HTD),
        layer.scaling * size**2,
        np.concatenate([w, np.zeros(still)]),
    )


@dataclass(frozen=True)
class HeadSmoothness:
    """How tight Bernstein's bound is for one head, over N pairs of tokens."""

    layer: int
    head: int
    scaling: str
    value: float
    """Mean over pairs of the largest |S| on [0, L), in units of the logits."""
    slope: float
    """Mean largest |S'|, logits per token."""
    bound: float
    """Mean of Bernstein's bound on it, W sum a_j."""
    tightness: float
    """Mean of slope over bound; 1 is tight."""
    curvature_tightness: float
    """The same for |S''|."""
    finer: float
    """Mean of sum a_j w_j over Bernstein's bound: how much of it frequencies explain."""
    carried: float
    """Mean number of distances of the gap at which the finer bounds say more than |S| <= limit."""


def tightness(
    contents: Sequence[Contents],
    base: rope.Base,
    *,
    target: int,
    gap: theory.Interval,
    scalings: Sequence[str] = ("none", "pi", "ntk", "yarn"),
    pairs: int = 8,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> list[HeadSmoothness]:
    """Measured smoothness beside its bounds, for every layer, head and scaling.

    contents  of the unscaled model on real text; scalings change frequencies only
    gap       distances that training doesn't see, first and last
    pairs     query-key pairs drawn for each head, the key before the query
    indices   of the layers that contents are of; None: 0, 1, ...
    """
    rng = np.random.default_rng(seed)
    bounds = []
    for place, layer in zip(indices or range(len(contents)), contents, strict=True):
        H, T, _ = layer.query_HTD.shape
        still = np.zeros(len(layer.frequency_J) - base.rotary_size // 2)
        drawn = np.sort(rng.integers(T, size=(H, 2, pairs)), axis=1)
        both = [layer.polynomial(h, drawn[h, 1], drawn[h, 0]) for h in range(H)]
        amplitude_NJ, phase_NJ = (np.concatenate(part) for part in zip(*both, strict=True))
        for scaling in scalings:
            headroom = rope.usual_headroom(scaling, target / base.window, base)
            s = rope.factor(base.window, target, headroom)
            parameters = rope.parameters(base, scaling, s)
            w, size = rope.inverse_frequencies(
                parameters, base.rotary_size, length=target, window=base.window
            )
            a = amplitude_NJ * np.concatenate([np.full_like(w, size**2), still + 1])
            w = np.concatenate([w, still])
            smooth = theory.smoothness(a, phase_NJ, w, target=target)
            ends = theory.score(a, phase_NJ, w, np.array([gap[0] - 1, gap[1] + 1]))
            carried = [
                theory.gap_band(
                    gap[0] - 1, gap[1] + 1, *ends[n],
                    limit=smooth.limit[n], slope=smooth.slope_sum[n],
                    curvature=smooth.curvature_sum[n],
                ).carried
                for n in range(len(a))
            ]  # fmt: skip
            columns = (
                smooth.value, smooth.slope, smooth.slope_bound, smooth.slope_tightness,
                smooth.curvature_tightness, smooth.slope_sum / smooth.slope_bound,
                np.array(carried, dtype=np.float64),
            )  # fmt: skip
            means = np.stack(columns).reshape(len(columns), H, pairs).mean(axis=-1)
            bounds += [
                HeadSmoothness(place, h, scaling, *(float(x) for x in means[:, h]))
                for h in range(H)
            ]
    return bounds


@dataclass(frozen=True)
class Reach:
    """Attention of every head by distance, over the last queries of a row."""

    edges: tuple[int, ...]
    """Bin e holds distances edges[e] .. edges[e+1]-1."""
    mass_LHE: Floats
    """Share of attention that falls into each bin; the bins of a head sum to 1, less what goes
    to tokens that were left out."""
    score_LHE: Floats
    """Mean logit of the pairs in each bin; NaN where there are none."""

    def far_heads(self, beyond: int, count: int = 10) -> list[tuple[int, int, float]]:
        """Layer, head and share of attention beyond a distance, largest first."""
        far = self.mass_LHE[..., np.array(self.edges[:-1]) >= beyond].sum(axis=-1)
        order = np.argsort(-far, axis=None)[:count]
        places = np.stack(np.unravel_index(order, far.shape), axis=1)
        return [(int(layer), int(head), float(far[layer, head])) for layer, head in places]


def reach(
    layers: Sequence[Layer],
    positions_T: Any,
    edges: Sequence[int],
    *,
    queries: int = 64,
    skip: int = 0,
) -> Reach:
    """Attention score and mass by distance, for the last `queries` tokens of a recorded row.

    edges  rising distances, the first 0, the last above the longest distance
    skip   first tokens that are in no bin: idle heads rest their attention there, however far
    """
    positions = np.asarray(positions_T)
    last = np.arange(len(positions))[-queries:]
    distance_QT = positions[last, None] - positions[None]
    causal_QT = np.arange(len(positions))[None] <= last[:, None]
    counted_QT = causal_QT & (np.arange(len(positions)) >= skip)
    bin_QT = np.searchsorted(edges, distance_QT, side="right") - 1
    E, mass, mean = len(edges) - 1, [], []
    for layer in layers:
        logits = np.einsum("hqd,htd->hqt", layer.query_HTD[:, last], layer.key_HTD) * layer.scaling
        logits[:, ~causal_QT] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        inside = [(bin_QT == e) & counted_QT for e in range(E)]
        mass.append([weights[:, band].sum(axis=-1) / len(last) for band in inside])
        mean.append(
            [
                logits[:, band].mean(axis=-1) if band.any() else np.full(len(logits), np.nan)
                for band in inside
            ]
        )
    return Reach(
        tuple(int(edge) for edge in edges),
        np.array(mass).transpose(0, 2, 1),
        np.array(mean).transpose(0, 2, 1),
    )
