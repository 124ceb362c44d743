"""RoPE scaling: the `rope_parameters` that Transformers reads, and the same as frequencies.

A RoPE of head size D turns pair j by position * w_j with w_j = theta ** (-2j / D). A scaling
rule changes w_j (and, for YaRN, the size of cos and sin) so that L positions fit where L0 did:

    pi    w_j / s                                              (Chen et al. 2023)
    ntk   theta * s ** (D / (D-2)) in place of theta           (bloc97 2023, "NTK-aware")
    yarn  w_j / s below a ramp, w_j above it, cos and sin times 0.1 ln s + 1  (Peng et al. 2023)

Written dictionaries always hold `rope_theta`, float factors and the original window: readers
fall to other defaults in silence where one of them is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from endprompt.errors import RopeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Base:
    """RoPE of a model as it comes: theta, rotated head size D, window L0 in tokens."""

    theta: float
    rotary_size: int
    window: int


def read_base(config: Any) -> Base:
    """RoPE of an unscaled model from its Transformers config.

    Raises RopeError for a model without RoPE, one that is already scaled, and one whose layers
    have RoPE settings of their own, each by name.
    """
    name = getattr(config, "model_type", type(config).__name__)
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise RopeError(f"model type {name!r} has no RoPE: its window cannot be extended")
    if any(isinstance(value, dict) for value in parameters.values()):
        raise RopeError(
            f"layers of model type {name!r} have RoPE settings of their own "
            f"({', '.join(sorted(parameters))}): not supported"
        )
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise RopeError(
            f"the base is already scaled (rope_type {kind!r}, "
            f"factor {parameters.get('factor')}): start from an unscaled checkpoint"
        )
    theta = parameters.get("rope_theta")
    if theta is None:
        raise RopeError(f"config of model type {name!r} names no rope_theta")
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    rotary_size = int(head_size * parameters.get("partial_rotary_factor", 1.0))
    return Base(float(theta), rotary_size, int(config.max_position_embeddings))


def factor(window: int, target: int) -> float:
    """Interpolation factor s = ceil(L / L0), as a float (paper, section 3.1).

    Raises RopeError when the target is not above the window.
    """
    if target <= window:
        raise RopeError(
            f"target {target} tokens is not above the model's window of {window}: "
            f"there is nothing to extend"
        )
    return float(math.ceil(target / window))


def parameters(
    base: Base,
    scaling: str,
    s: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> dict[str, Any]:
    """`rope_parameters` of Transformers for a scaling rule and factor `s`.

    beta_fast, beta_slow  YaRN's ramp, in rotations over the original window
    attention_factor      YaRN's factor on cos and sin; None: 0.1 ln s + 1
    """
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": base.theta}
    if scaling == "pi":
        return {"rope_type": "linear", "rope_theta": base.theta, "factor": float(s)}
    if scaling == "ntk":
        theta = base.theta * s ** (base.rotary_size / (base.rotary_size - 2))
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "yarn":
        found: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": base.theta,
            "factor": float(s),
            "original_max_position_embeddings": base.window,
            "beta_fast": float(beta_fast),
            "beta_slow": float(beta_slow),
        }
        if attention_factor is not None:
            found["attention_factor"] = float(attention_factor)
        return found
    raise RopeError(f"unknown scaling {scaling!r}: none, pi, ntk or yarn")


def inverse_frequencies(parameters: dict[str, Any], rotary_size: int) -> tuple[Floats, float]:
    """Radians per position, float64[D/2], and the factor on cos and sin.

    What the model's rotary embedding must hold for these `rope_parameters`; float64 throughout.
    """
    theta, D = float(parameters["rope_theta"]), rotary_size
    plain = theta ** (-np.arange(0, D, 2, dtype=np.float64) / D)
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    s = float(parameters["factor"])
    if kind == "linear":
        return plain / s, 1.0
    if kind == "yarn":
        window = parameters["original_max_position_embeddings"]

        def pair_turning(rotations: float) -> float:
            """The (fractional) pair that turns this many times over the original window."""
            return D * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(pair_turning(parameters.get("beta_fast", 32.0))), 0)
        high = min(math.ceil(pair_turning(parameters.get("beta_slow", 1.0))), D - 1)
        ramp = np.clip((np.arange(D // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        scale = parameters.get("attention_factor")
        if scale is None:
            scale = 0.1 * math.log(s) + 1.0 if s > 1 else 1.0
        return plain * (1 - ramp) + plain / s * ramp, float(scale)
    raise RopeError(f"unknown rope_type {kind!r}")
