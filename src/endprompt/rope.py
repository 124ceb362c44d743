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

`RULES` is the one table of them: what the recipe may name, what is written, how it turns, how a
base that has the rule already is extended further, and which engine can't express it.

Written dictionaries always hold `rope_theta`, float factors and the original window: readers
fall to other defaults in silence where one of them is missing.
"""

# ruff: noqa: ARG001 - functions of one column of RULES have one signature

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from endprompt import plugins
from endprompt.errors import RopeError

Floats = NDArray[np.float64]
Parameters = dict[str, Any]
Turning = tuple[Floats, float]
"""Radians per position of each pair, float64[D/2], and the factor on cos and sin."""
UNLIMITED = 10**9
"""Tokenizers that name no length hold a number above this."""
NO_HEADROOM_UP_TO = 2
"""L / L0 up to which training alone reaches the farthest distances (docs/results.md)."""
HEADROOM_KEY = "rope_headroom"
"""Where the config of an extended model tells the next extension how much headroom it has."""
LONGROPE_IN_GGUF = frozenset({"phi3", "phimoe", "minicpm", "minicpm3"})

ONLY = {"phi3": ("none", "ntk", "longrope"), "phi4_multimodal": ("none", "ntk", "longrope")}
"""Model types whose config takes no other rule: a checkpoint with one would not load again."""


@dataclass(frozen=True)
class Base:
    """RoPE of a model as it comes: theta, rotated head size D, window in tokens.

    window      what the base is good for: of a scaled base, what it was scaled to
    partial     the share of each head that is rotated: below 1 in GPT-NeoX, Phi, GLM, StableLM
    parameters  `rope_parameters` of a base that is scaled already, its factor filled in
    headroom    multiple of L / L0 that the factor of an earlier extension was (`HEADROOM_KEY`)
    """

    theta: float
    rotary_size: int
    window: int
    partial: float = 1.0
    parameters: Parameters | None = field(default=None, hash=False)
    headroom: float = 1.0

    @property
    def own(self) -> Parameters:
        """`rope_parameters` of the base as it comes."""
        return dict(self.parameters) if self.parameters else _default(self)

    def frequencies(self, length: int | None = None) -> Turning:
        """How the base itself turns; float64[D/2] radians per position, factor on cos and sin."""
        if self.parameters is None:
            return _plain(self.theta, self.rotary_size), 1.0
        return inverse_frequencies(
            self.parameters, self.rotary_size, length=length, window=self.window
        )


@dataclass(frozen=True)
class Rule:
    """One scaling rule.

    rope_type  Transformers' name
    keys       settings of a recipe's `rope` that it reads, beside the factor
    write      (unscaled base, s, settings) to what `rope_parameters` hold beside theta and factor
    grow       (parameters of a base that has the rule, base, s, settings) to those of a window s
               times as long; None: the rule has no closed form on a scaled base
    obstacle   (engine, parameters, model type, window written to the config) to why the engine
               can't express it, or ""
    headroom   the factor as a multiple of L / L0, where a recipe leaves it open and L / L0 is above
               `NO_HEADROOM_UP_TO`: the best that was measured (docs/lab.md), 1 where nothing was
    """

    rope_type: str
    keys: tuple[str, ...]
    write: Callable[[Base, float, Mapping[str, Any]], Parameters]
    grow: Callable[[Parameters, Base, float, Mapping[str, Any]], Parameters] | None = None
    obstacle: Callable[[str, Parameters, str, int], str] = lambda *_: ""
    headroom: float = 1.0


def read_base(config: Any, named: int = 0) -> Base:
    """RoPE of a model from its Transformers config; where kinds of layers differ, of the global.

    named  tokens that the tokenizer was saved with (`model_max_length`); 0: unknown

    Raises RopeError for a model without RoPE, for RoPE of more than one axis, and for a rule that
    isn't in `RULES`, each by name.
    """
    name = getattr(config, "model_type", type(config).__name__)
    parameters = of_global_layers(config)
    if not parameters:
        raise RopeError(
            f"model type {name!r} has no RoPE that could be scaled: its window cannot be extended"
        )
    if "mrope_section" in parameters:
        raise RopeError(
            f"RoPE of model type {name!r} has several axes (mrope_section): only text models can "
            f"be extended"
        )
    theta = parameters.get("rope_theta")
    if theta is None:
        raise RopeError(f"config of model type {name!r} names no rope_theta")
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    partial = float(parameters.get("partial_rotary_factor") or 1.0)
    scaled = None
    if parameters.get("rope_type", "default") != "default":
        scaled = _filled_in(parameters, config, name)
        if parameters is not config.rope_parameters:
            scaled.pop("truncate", None)  # which Transformers reads outside of kinds only
    return Base(
        float(theta),
        int(head_size * partial),
        _window(parameters, int(config.max_position_embeddings), named),
        partial,
        scaled,
        float(getattr(config, HEADROOM_KEY, 1.0)),
    )


def of_global_layers(config: Any) -> Parameters:
    """`rope_parameters` of a config; where kinds of layers have their own, the global ones'."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        return parameters.get("full_attention") or {}
    return parameters


def _filled_in(parameters: Parameters, config: Any, name: str) -> Parameters:
    """The same with its factor as a number, which older configs leave to be derived."""
    kind = parameters["rope_type"]
    if kind not in _TURN:
        raise RopeError(
            f"RoPE of model type {name!r} is scaled by a rule {kind!r} that is not known: one of "
            f"{', '.join(_TURN)}"
        )
    filled = {key: value for key, value in parameters.items() if key != "type"}
    if filled.get("factor") is None:
        original = filled["original_max_position_embeddings"]
        filled["factor"] = max(1.0, config.max_position_embeddings / original)
    filled["factor"] = float(filled["factor"])
    return filled


def _window(parameters: Parameters, held: int, named: int) -> int:
    """Tokens that a model is good for, scaling included.

    held   max_position_embeddings: the extended length, but for configs that keep the original
    named  the tokenizer's length, which tells where nothing else does
    """
    kind, s = parameters.get("rope_type", "default"), parameters.get("factor") or 1.0
    original = parameters.get("original_max_position_embeddings")
    if kind == "dynamic" and held < named < UNLIMITED:
        return int(named)
    if kind == "linear" and held < named <= round(held * s):
        return int(named)
    if kind in ("yarn", "llama3", "longrope") and original and held <= original:
        return round(original * s)
    return held


def window_of(config: Any, tokenizer: Any) -> int:
    """Positions that a model is good for, scaling included.

    Some configs keep the original window: `dynamic` always does, `yarn` as Qwen 2.5 writes it.
    There it follows from the factor or from the length that the tokenizer was saved with.
    """
    parameters = of_global_layers(config)
    named = getattr(tokenizer, "model_max_length", 0) or 0
    return _window(parameters, int(config.max_position_embeddings), int(named))


def name_of(parameters: Parameters) -> str:
    """Our name of the rule that a scaled base has."""
    return {rule.rope_type: name for name, rule in RULES.items()}[parameters["rope_type"]]


def check_scaling(model_type: str, scaling: str) -> None:
    """Raise RopeError for a rule that the model's family cannot hold, with those it can."""
    allowed = ONLY.get(model_type, (scaling,))
    if scaling not in allowed:
        raise RopeError(
            f"model type {model_type!r} takes no scaling {scaling!r}: set rope.scaling to "
            f"{' or '.join(allowed[1:])}"
        )


def usual_headroom(scaling: str, times: float, base: Base | None = None) -> float:
    """The headroom of a rule for a window `times` as long, less what the base has already.

    A window extended twice so has the factor of one step, unless both steps have none.

    >>> usual_headroom("yarn", 8), usual_headroom("yarn", 2), usual_headroom("pi", 8)
    (1.5, 1.0, 1.0)
    """
    rule = RULES.get(scaling)
    headroom = rule.headroom if rule and times > NO_HEADROOM_UP_TO else 1.0
    return headroom / min(headroom, max(1.0, base.headroom)) if base else headroom


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
) -> Parameters:
    """`rope_parameters` of Transformers for a scaling rule and factor `s` over the base's window.

    beta_fast, beta_slow  YaRN's ramp, in rotations over the original window
    attention_factor      YaRN's and LongRoPE's factor on cos and sin; None: as their papers say
    low_freq_factor, high_freq_factor  llama3's blend, in rotations over the original window
    long_factor           LongRoPE's D/2 divisors beyond the window; None: `stretch`
    short_factor          the same inside it; None: all 1

    A base that is scaled already keeps its rule, with a factor s times as large over the *original*
    window; `pi` and `longrope` also come on top of another rule, as explicit factors. s = 1 gives
    the base's own. Raises RopeError for a rule that has no form on top of the base's.

    With `dynamic`, `max_position_embeddings` of the config has to stay the original window:
    Transformers scales nothing up to that length.
    """
    settings = {
        "beta_fast": float(beta_fast), "beta_slow": float(beta_slow),
        "attention_factor": None if attention_factor is None else float(attention_factor),
        "low_freq_factor": float(low_freq_factor), "high_freq_factor": float(high_freq_factor),
        "long_factor": long_factor, "short_factor": short_factor,
    }  # fmt: skip
    s = float(s)
    if scaling == "none":
        return base.own
    rule = RULES.get(scaling)
    if rule is None:
        return _by_plugin(base, scaling, s)
    if base.parameters is not None:
        return base.own if s == 1 else _on_top(base, base.parameters, scaling, s, settings)
    written = _default(base) | {"rope_type": rule.rope_type}
    if rule.rope_type != "default":
        written["factor"] = s
    return written | rule.write(base, s, settings)


def _by_plugin(base: Base, scaling: str, s: float) -> Parameters:
    rule = plugins.find("endprompt.scaling", scaling)
    if rule is None:
        raise RopeError(f"unknown scaling {scaling!r}: one of none, {', '.join(RULES)}")
    if base.parameters is not None:
        raise RopeError(_no_form(base.parameters, scaling, "a package's rule counts from theta"))
    return _default(base) | rule(base, s)


def _on_top(
    base: Base, own: Parameters, scaling: str, s: float, settings: Mapping[str, Any]
) -> Parameters:
    """A rule on a base that is scaled already. Raises RopeError where it has no form."""
    rule = RULES[scaling]
    if rule.grow is not None and rule.rope_type == own["rope_type"]:
        return rule.grow(own, base, s, settings)
    if scaling not in ("pi", "longrope"):
        raise RopeError(_no_form(own, scaling, "it counts rotations and theta of an unscaled base"))
    if own["rope_type"] == "dynamic":
        raise RopeError(_no_form(own, scaling, "dynamic NTK turns differently at every length"))
    return _explicit(own, base, s, settings, even=scaling == "pi")


def _no_form(own: Parameters, scaling: str, why: str) -> str:
    kind, ours = own["rope_type"], name_of(own)
    others = "" if kind == "dynamic" else ", or to pi or longrope for explicit factors"
    return (
        f"the base is scaled by {kind!r} (factor {own['factor']:g}), and {scaling!r} has no form "
        f"on top of it: {why}; set rope.scaling to {ours}{others}"
    )


def _explicit(
    own: Parameters, base: Base, s: float, settings: Mapping[str, Any], *, even: bool
) -> Parameters:
    """Another rule on top, as LongRoPE's explicit factors over plain frequencies.

    Inside the base's window the base's own frequencies, beyond it those divided by s (`even`) or
    by LongRoPE's factors. One factor on cos and sin serves both; the base's, times LongRoPE's own.
    """
    pairs = base.rotary_size // 2
    plain = _plain(base.theta, base.rotary_size)
    is_longrope = own["rope_type"] == "longrope"
    original = own["original_max_position_embeddings"] if is_longrope else base.window
    turning, size = base.frequencies(base.window)
    divisors = np.full(pairs, s) if even else np.array(
        _factors(settings["long_factor"] or stretch(base, s), pairs, "long")
    )  # fmt: skip
    if settings["attention_factor"] is not None:
        size = settings["attention_factor"]
    elif is_longrope and not even and own.get("attention_factor") is None:
        size = _longrope_size(own["factor"] * s, original)
    elif not even:
        before, after = (own["factor"], own["factor"] * s) if is_longrope else (1.0, s)
        size *= _longrope_size(after, original) / _longrope_size(before, original)
    short = settings["short_factor"] or (own["short_factor"] if is_longrope else plain / turning)
    kept = {key: own[key] for key in ("partial_rotary_factor",) if key in own}
    return {
        **kept,
        "rope_type": "longrope",
        "rope_theta": base.theta,
        "factor": own["factor"] * s if is_longrope else s,
        "original_max_position_embeddings": original,
        "attention_factor": float(size),
        "short_factor": _factors(short, pairs, "short"),
        "long_factor": [float(divisor) for divisor in plain / turning * divisors],
    }


def stretch(base: Base, s: float, critical: int | None = None) -> list[float]:
    """LongRoPE factors of D/2 pairs: s ** (j / critical) below a critical pair, s from there on.

    critical  index of the first pair that is interpolated in full; None: the first one that
              doesn't turn once in the base's window, so that its angles at L were never met

    A starting point made from the frequencies alone; LongRoPE searches its factors by the loss
    of the model.
    """
    pairs = base.rotary_size // 2
    if critical is None:
        turns = base.window * base.frequencies(base.window)[0] / (2 * math.pi)
        critical = int(np.sum(turns >= 1))
    return [float(s ** min(j / critical, 1.0)) if critical else float(s) for j in range(pairs)]


def inverse_frequencies(
    parameters: Parameters,
    rotary_size: int,
    *,
    length: int | None = None,
    window: int | None = None,
) -> Turning:
    """Radians per position, float64[D/2], and the factor on cos and sin.

    What the model's rotary embedding must hold for these `rope_parameters`; float64 throughout.

    length  highest position of a row, plus 1: `dynamic` and `longrope` turn differently at
            different lengths; None: beyond the window, where LongRoPE is concerned
    window  the model's original window, which `dynamic` does not name in its parameters
    """
    kind = parameters.get("rope_type", "default")
    plain = _plain(float(parameters["rope_theta"]), rotary_size)
    if kind == "default":
        return plain, 1.0
    if kind not in _TURN:
        raise RopeError(f"unknown rope_type {kind!r}")
    return _TURN[kind](parameters, plain, length, window)


def _default(base: Base) -> Parameters:
    written: Parameters = {"rope_type": "default", "rope_theta": base.theta}
    if base.partial != 1.0:
        written["partial_rotary_factor"] = base.partial
    return written


def _plain(theta: float, D: int) -> Floats:
    return theta ** (-np.arange(0, D, 2, dtype=np.float64) / D)


def _ntk_theta(theta: float, s: float, D: int) -> float:
    return theta * s ** (D / (D - 2))


def _factors(factors: Sequence[float] | Floats, pairs: int, name: str) -> list[float]:
    if len(factors) != pairs:
        raise RopeError(
            f"rope.{name}_factor has {len(factors)} numbers and the model rotates {pairs} pairs"
        )
    return [float(factor) for factor in factors]


# How each of Transformers' types turns: (parameters, plain frequencies, length, window) to Turning.


def _turn_linear(p: Parameters, plain: Floats, length: Any, window: Any) -> Turning:
    return plain / float(p["factor"]), 1.0


def _turn_dynamic(p: Parameters, plain: Floats, length: int | None, window: int | None) -> Turning:
    if length is None or window is None:
        raise RopeError("dynamic NTK turns differently at each length: give length and window")
    s, D = float(p["factor"]), 2 * len(plain)
    grown = s * max(length, window) / window - (s - 1)
    return _plain(_ntk_theta(float(p["rope_theta"]), grown, D), D), 1.0


def _turn_yarn(p: Parameters, plain: Floats, length: Any, window: Any) -> Turning:
    s, original = float(p["factor"]), p["original_max_position_embeddings"]
    theta, D = float(p["rope_theta"]), 2 * len(plain)

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair that turns this many times over the original window."""
        return D * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (pair_turning(p.get(k) or d) for k, d in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    ramp = np.clip((np.arange(D // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    size = p.get("attention_factor")
    return plain * (1 - ramp) + plain / s * ramp, _yarn_size(p, s) if size is None else float(size)


def _yarn_size(p: Parameters, s: float) -> float:
    """YaRN's factor on cos and sin at a total factor s; DeepSeek's form has two more settings."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(s) + 1.0 if s > 1 else 1.0

    above, below = p.get("mscale"), p.get("mscale_all_dim")
    return of(above) / of(below) if above and below else of(1.0)


def _turn_llama3(p: Parameters, plain: Floats, length: Any, window: Any) -> Turning:
    s, original = float(p["factor"]), p["original_max_position_embeddings"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * keep + plain / s * (1 - keep), 1.0


def _turn_longrope(p: Parameters, plain: Floats, length: int | None, window: Any) -> Turning:
    original = p["original_max_position_embeddings"]
    inside = length is not None and length <= original
    factors = np.asarray(p["short_factor" if inside else "long_factor"], dtype=np.float64)
    size = p.get("attention_factor")
    return plain / factors, _longrope_size(p["factor"], original) if size is None else float(size)


def _longrope_size(s: float, original: int) -> float:
    return math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 else 1.0


# What each rule writes for an unscaled base, and how it grows on a base that has it already.


def _write_yarn(base: Base, s: float, settings: Mapping[str, Any]) -> Parameters:
    return _counted_from(base, settings, "attention_factor", "beta_fast", "beta_slow")


def _write_llama3(base: Base, s: float, settings: Mapping[str, Any]) -> Parameters:
    return _counted_from(base, settings, "low_freq_factor", "high_freq_factor")


def _write_longrope(base: Base, s: float, settings: Mapping[str, Any]) -> Parameters:
    pairs = base.rotary_size // 2
    return _counted_from(base, settings, "attention_factor") | {
        "long_factor": _factors(settings["long_factor"] or stretch(base, s), pairs, "long"),
        "short_factor": _factors(settings["short_factor"] or [1.0] * pairs, pairs, "short"),
    }


def _counted_from(base: Base, settings: Mapping[str, Any], *keys: str) -> Parameters:
    given = {key: settings[key] for key in keys if settings[key] is not None}
    return {"original_max_position_embeddings": base.window, **given}


def _grow(own: Parameters, base: Base, s: float, settings: Mapping[str, Any]) -> Parameters:
    """The same rule with a factor s times as large. Raises RopeError for other settings of it."""
    for key, usual in USUAL.items():
        if key in RULE_OF_TYPE[own["rope_type"]].keys and settings[key] != usual:
            had = own.get(key) or usual
            if settings[key] != had:
                raise RopeError(
                    f"the base is scaled by {own['rope_type']!r} with {key} {had:g}, and a larger "
                    f"factor keeps it: leave rope.{key} out"
                )
    return own | {"factor": own["factor"] * s}


def _grow_yarn(own: Parameters, base: Base, s: float, settings: Mapping[str, Any]) -> Parameters:
    """The factor on cos and sin follows the total factor, whether it is written or derived."""
    grown = _grow(own, base, s, settings)
    if settings["attention_factor"] is not None:
        grown["attention_factor"] = settings["attention_factor"]
    elif own.get("attention_factor") is not None:
        grown["attention_factor"] = (
            float(own["attention_factor"])
            * _yarn_size(own, grown["factor"])
            / _yarn_size(own, own["factor"])
        )
    return grown


def _grow_longrope(
    own: Parameters, base: Base, s: float, settings: Mapping[str, Any]
) -> Parameters:
    return _explicit(own, base, s, settings, even=False)


def _dynamic_obstacle(engine: str, p: Parameters, model_type: str, window: int) -> str:
    if engine == "vllm":
        return "its table of dynamic NTK ends at the old window, and is not scaled"
    if engine == "sglang":
        return "turns dynamic NTK at one fixed frequency, training followed the length of each row"
    if engine == "llama.cpp":
        return "its converter drops dynamic NTK: the model would run unscaled"
    return ""


def _yarn_obstacle(engine: str, p: Parameters, model_type: str, window: int) -> str:
    reach = p["factor"] * p.get("original_max_position_embeddings", window)
    if engine == "vllm" and reach < window:
        return f"its table of YaRN ends at {reach:,.0f} positions, before the window of {window:,}"
    if engine != "llama.cpp":
        return ""
    usual, size = 0.1 * math.log(p["factor"]) + 1.0, p.get("attention_factor")
    size = _yarn_size(p, p["factor"]) if size is None else size
    if not math.isclose(size, usual, rel_tol=1e-6):
        return f"it computes YaRN's attention factor as {usual:.4g}, training used {size:.4g}"
    return ""


def _longrope_obstacle(engine: str, p: Parameters, model_type: str, window: int) -> str:
    if engine == "llama.cpp" and model_type not in LONGROPE_IN_GGUF:
        return f"its converter has no LongRoPE factors for model type {model_type!r}"
    original, size = p["original_max_position_embeddings"], p.get("attention_factor")
    size = _longrope_size(p["factor"], original) if size is None else size
    computed = _longrope_size(window / original, original)
    if engine == "vllm" and not math.isclose(size, computed, rel_tol=1e-4):
        return (
            f"it computes LongRoPE's factor on cos and sin as {computed:.4g} from the windows, "
            f"training used {size:.4g}"
        )
    return ""


_TURN: dict[str, Callable[[Parameters, Floats, Any, Any], Turning]] = {
    "linear": _turn_linear,
    "dynamic": _turn_dynamic,
    "yarn": _turn_yarn,
    "llama3": _turn_llama3,
    "longrope": _turn_longrope,
}
RULES = {
    "pi": Rule("linear", (), lambda *_: {}, _grow),
    "ntk": Rule(
        "default",
        (),
        lambda base, s, _: {"rope_theta": _ntk_theta(base.theta, s, base.rotary_size)},
        headroom=2.0,
    ),
    "dynamic": Rule("dynamic", (), lambda *_: {}, _grow, _dynamic_obstacle),
    "yarn": Rule(
        "yarn",
        ("beta_fast", "beta_slow", "attention_factor"),
        _write_yarn,
        _grow_yarn,
        _yarn_obstacle,
        headroom=1.5,
    ),
    "llama3": Rule(
        "llama3",
        ("low_freq_factor", "high_freq_factor"),
        _write_llama3,
        _grow,
        headroom=1.5,
    ),
    "longrope": Rule(
        "longrope",
        ("long_factor", "short_factor", "attention_factor"),
        _write_longrope,
        _grow_longrope,
        _longrope_obstacle,
    ),
}
"""Scaling rules by our names. Other packages add theirs (`endprompt.plugins`)."""
TITLES = {
    "pi": "PI", "ntk": "NTK", "dynamic": "dynamic NTK", "yarn": "YaRN", "llama3": "Llama 3",
    "longrope": "LongRoPE",
}  # fmt: skip
"""The rules as their authors write them; a package's rule has its own name."""
RULE_OF_TYPE = {rule.rope_type: rule for rule in RULES.values()}
"""The same by Transformers' names."""
USUAL = {"beta_fast": 32.0, "beta_slow": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Defaults of the settings of rules."""


def obstacle(engine: str, parameters: Parameters, model_type: str, window: int) -> str:
    """Why an engine can't express a RoPE scaling, or "".

    window  `max_position_embeddings` of the config, tokens
    """
    rule = RULE_OF_TYPE.get(parameters.get("rope_type", "default"))
    return rule.obstacle(engine, parameters, model_type, window) if rule else ""
