"""RoPE scaling: the `rope_parameters` that Transformers reads, and the same as frequencies.

A RoPE of head size D turns pair j by position * w_j with w_j = theta ** (-2j / D). A scaling
rule changes w_j (and, for some, the size of cos and sin) so that L positions fit where L0 did:

    pi        w_j / s                                               (Chen et al. 2023)
    ntk       theta * s ** (D / (D-2)) in place of theta            (bloc97 2023, "NTK-aware")
    dynamic   the same with s L' / L0 - (s-1) in place of s, L' the length met, once above L0
              (emozilla 2023, "Dynamically scaled RoPE")
    yarn      w_j / s below a ramp, w_j above it, cos and sin times 0.1 ln s + 1
              (Peng et al. 2023)
    llama3    w_j / s for pairs that turn less than once in L0, w_j for those that turn more
              than 4 times, a blend between (Llama 3.1)
    longrope  w_j / factor_j, one set of factors inside L0 and one beyond it, cos and sin times
              sqrt(1 + ln s / ln L0) (Ding et al. 2024)

Written dictionaries always hold `rope_theta`, float factors and the original window: readers
fall to other defaults in silence where one of them is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from endprompt import plugins
from endprompt.errors import RopeError

Floats = NDArray[np.float64]
UNLIMITED = 10**9
"""Tokenizers that name no length hold a number above this."""

ROPE_TYPES = {
    "pi": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
}
"""Names of Transformers for the scaling rules that are types of its own."""

ONLY = {"phi3": ("none", "ntk", "longrope"), "phi4_multimodal": ("none", "ntk", "longrope")}
"""Model types whose config takes no other rule: a checkpoint with one would not load again."""


@dataclass(frozen=True)
class Base:
    """RoPE of a model as it comes: theta, rotated head size D, window L0 in tokens.

    `partial` is the share of each head that is rotated: below 1 in GPT-NeoX and Phi.
    """

    theta: float
    rotary_size: int
    window: int
    partial: float = 1.0


def read_base(config: Any) -> Base:
    """RoPE of an unscaled model from its Transformers config.

    Raises RopeError for a model without RoPE, one that is already scaled, one whose layers have
    RoPE settings of their own and one with sliding windows, each by name.
    """
    name = getattr(config, "model_type", type(config).__name__)
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise RopeError(
            f"model type {name!r} has no RoPE that could be scaled: its window cannot be extended"
        )
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
    sliding = getattr(config, "sliding_window", None)
    if sliding is not None:
        raise RopeError(
            f"layers of model type {name!r} see {sliding} tokens back only (sliding_window), "
            f"whatever their positions: choose a model with full attention in every layer, "
            f"or set sliding_window to null in its config"
        )
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    partial = float(parameters.get("partial_rotary_factor", 1.0))
    return Base(
        float(theta), int(head_size * partial), int(config.max_position_embeddings), partial
    )


def check_scaling(model_type: str, scaling: str) -> None:
    """Raise RopeError for a rule that the model's family cannot hold, with those it can."""
    allowed = ONLY.get(model_type, (scaling,))
    if scaling not in allowed:
        raise RopeError(
            f"model type {model_type!r} takes no scaling {scaling!r}: set rope.scaling to "
            f"{' or '.join(allowed[1:])}"
        )


def window_of(config: Any, tokenizer: Any) -> int:
    """Positions that a model is good for, scaling included.

    `dynamic` keeps the original window in the config and names no end: there it is the length
    that the tokenizer was saved with, where that is longer.
    """
    held = int(config.max_position_embeddings)
    parameters = getattr(config, "rope_parameters", None) or {}
    named = getattr(tokenizer, "model_max_length", 0) or 0
    if parameters.get("rope_type") == "dynamic" and held < named < UNLIMITED:
        return int(named)
    return held


def factor(window: int, target: int, headroom: float = 1.0) -> float:
    """Interpolation factor s = headroom * ceil(L / L0); the paper's has no headroom (section 3.1).

    Raises RopeError when the target is not above the window.
    """
    if target <= window:
        raise RopeError(
            f"target {target} tokens is not above the model's window of {window}: "
            f"there is nothing to extend"
        )
    return float(headroom * math.ceil(target / window))


def parameters(
    base: Base,
    scaling: str,
    s: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    long_factor: Sequence[float] | None = None,
    short_factor: Sequence[float] | None = None,
) -> dict[str, Any]:
    """`rope_parameters` of Transformers for a scaling rule and factor `s`.

    beta_fast, beta_slow  YaRN's ramp, in rotations over the original window
    attention_factor      YaRN's and LongRoPE's factor on cos and sin; None: as their papers say
    low_freq_factor, high_freq_factor  llama3's blend, in rotations over the original window
    long_factor           LongRoPE's D/2 divisors beyond the window; None: `stretch`
    short_factor          the same inside it; None: all 1

    With `dynamic`, `max_position_embeddings` of the config has to stay the original window:
    Transformers scales nothing up to that length.
    """
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base.theta}
    if base.partial != 1.0:
        found["partial_rotary_factor"] = base.partial
    if scaling == "none":
        return found
    if scaling == "ntk":
        return found | {"rope_theta": _ntk_theta(base.theta, s, base.rotary_size)}
    rule = None if scaling in ROPE_TYPES else plugins.find("endprompt.scaling", scaling)
    if rule is not None:
        return found | rule(base, float(s))
    if scaling not in ROPE_TYPES:
        raise RopeError(f"unknown scaling {scaling!r}: one of none, ntk, {', '.join(ROPE_TYPES)}")
    found |= {"rope_type": ROPE_TYPES[scaling], "factor": float(s)}
    if scaling in ("yarn", "llama3", "longrope"):
        found["original_max_position_embeddings"] = base.window
    if scaling in ("yarn", "longrope") and attention_factor is not None:
        found["attention_factor"] = float(attention_factor)
    if scaling == "yarn":
        found |= {"beta_fast": float(beta_fast), "beta_slow": float(beta_slow)}
    elif scaling == "llama3":
        found["low_freq_factor"] = float(low_freq_factor)
        found["high_freq_factor"] = float(high_freq_factor)
    elif scaling == "longrope":
        pairs = base.rotary_size // 2
        found["long_factor"] = _factors(long_factor or stretch(base, s), pairs, "long")
        found["short_factor"] = _factors(short_factor or [1.0] * pairs, pairs, "short")
    return found


def stretch(base: Base, s: float, critical: int | None = None) -> list[float]:
    """LongRoPE factors of D/2 pairs: s ** (j / critical) below a critical pair, s from there on.

    critical  index of the first pair that is interpolated in full; None: the first one that
              doesn't turn once in the original window, so that its angles at L were never met

    A starting point made from the frequencies alone; LongRoPE searches its factors by the loss
    of the model.
    """
    pairs = base.rotary_size // 2
    if critical is None:
        turns = base.window * _plain(base.theta, base.rotary_size) / (2 * math.pi)
        critical = int(np.sum(turns >= 1))
    return [float(s ** min(j / critical, 1.0)) if critical else float(s) for j in range(pairs)]


def inverse_frequencies(
    parameters: dict[str, Any],
    rotary_size: int,
    *,
    length: int | None = None,
    window: int | None = None,
) -> tuple[Floats, float]:
    """Radians per position, float64[D/2], and the factor on cos and sin.

    What the model's rotary embedding must hold for these `rope_parameters`; float64 throughout.

    length  highest position of a row, plus 1: `dynamic` and `longrope` turn differently at
            different lengths; None: beyond the window, where LongRoPE is concerned
    window  the model's original window, which `dynamic` does not name in its parameters
    """
    theta, D = float(parameters["rope_theta"]), rotary_size
    plain = _plain(theta, D)
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    s = float(parameters["factor"])
    if kind == "linear":
        return plain / s, 1.0
    if kind == "dynamic":
        if length is None or window is None:
            raise RopeError("dynamic NTK turns differently at each length: give length and window")
        grown = s * max(length, window) / window - (s - 1)
        return _plain(_ntk_theta(theta, grown, D), D), 1.0
    if kind == "yarn":
        return _yarn(parameters, plain, theta, D)
    if kind == "llama3":
        return _llama3(parameters, plain), 1.0
    if kind == "longrope":
        original = parameters["original_max_position_embeddings"]
        inside = length is not None and length <= original
        factors = parameters["short_factor" if inside else "long_factor"]
        scale = parameters.get("attention_factor")
        if scale is None:
            scale = math.sqrt(1 + math.log(s) / math.log(original))
        return plain / np.asarray(factors, dtype=np.float64), float(scale)
    raise RopeError(f"unknown rope_type {kind!r}")


def _plain(theta: float, D: int) -> Floats:
    return theta ** (-np.arange(0, D, 2, dtype=np.float64) / D)


def _ntk_theta(theta: float, s: float, D: int) -> float:
    return theta * s ** (D / (D - 2))


def _factors(factors: Sequence[float], pairs: int, name: str) -> list[float]:
    if len(factors) != pairs:
        raise RopeError(
            f"rope.{name}_factor has {len(factors)} numbers and the model rotates {pairs} pairs"
        )
    return [float(each) for each in factors]


def _yarn(parameters: dict[str, Any], plain: Floats, theta: float, D: int) -> tuple[Floats, float]:
    s, window = float(parameters["factor"]), parameters["original_max_position_embeddings"]

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair that turns this many times over the original window."""
        return D * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(parameters.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(pair_turning(parameters.get("beta_slow", 1.0))), D - 1)
    width = high - low or 0.001
    ramp = np.clip((np.arange(D // 2) - low) / width, 0.0, 1.0)
    scale = parameters.get("attention_factor")
    if scale is None:
        scale = 0.1 * math.log(s) + 1.0
    return plain * (1 - ramp) + plain / s * ramp, float(scale)


def _llama3(parameters: dict[str, Any], plain: Floats) -> Floats:
    s, window = float(parameters["factor"]), parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = window * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * keep + plain / s * (1 - keep)
