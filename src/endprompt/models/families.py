"""What each layer of a model is: how far it sees, which RoPE it has, whether that is scaled.

Transformers' config says it, in the words of each family. A *global* layer sees every token before
it, a *local* one the W nearest positions (`sliding_window`). What an extension means differs:

    global, with RoPE     scaled; a jump trains its far distances
    local, with RoPE      sees the W nearest positions, whatever the row's jumps; scaled only where
                          the family has one RoPE for all layers
    global, without RoPE  sees across a jump, but no distance: what it learns there is length
    linear, recurrent     sees the order of tokens, not their positions: a jump doesn't exist
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from endprompt import rope
from endprompt.errors import RopeError

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Transformers' names of layer types."""

WITHOUT_POSITIONS = {
    "chunked_attention": "chunked layers see the tokens of their own chunk of positions",
    "linear_attention": "linear attention and state-space layers see the order of tokens",
    "mamba": "state-space layers see the order of tokens",
    "recurrent": "recurrent layers see the order of tokens",
    "conv": "convolutions see the nearest tokens of the array",
    "hybrid": "layers with a recurrent state see the order of tokens",
}
GLOBAL_WITHOUT_ROPE = ("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint")
"""Model types that rotate in local layers alone, wherever they have some."""


@dataclass(frozen=True)
class Layers:
    """Layers of one kind.

    kind        Transformers' layer type, by which its masks are named
    indices     which layers they are
    span        positions that a token sees, itself included; None: all before it
    parameters  `rope_parameters` of these layers; None: they have no RoPE
    scaled      whether an extension changes their RoPE
    """

    kind: str
    indices: tuple[int, ...]
    span: int | None
    parameters: rope.Parameters | None
    scaled: bool

    @property
    def name(self) -> str:
        """`global`, `local` or `global without RoPE`."""
        name = "global" if self.span is None else "local"
        return name if self.parameters else f"{name} without RoPE"


@dataclass(frozen=True)
class Family:
    """A model's layers and the RoPE that an extension scales.

    by_kind  RoPE settings are written for each kind of layer
    """

    model_type: str
    base: rope.Base
    layers: tuple[Layers, ...]
    by_kind: bool

    def suited(self, scaling: str) -> str:
        """The rule to use where the user chose none: that of a base which is scaled already."""
        if scaling == "none":
            return scaling
        if self.base.parameters is not None:
            return rope.name_of(self.base.parameters)
        allowed = rope.ONLY.get(self.model_type, (scaling,))
        return scaling if scaling in allowed else allowed[-1]

    def local_span(self, target: int) -> int | None:
        """W of layers that don't see `target` positions; None: every layer sees them all."""
        spans = [
            layer.span for layer in self.layers if layer.span is not None and layer.span < target
        ]
        return min(spans, default=None)

    def require_reach(self, target: int) -> None:
        """Raise RopeError unless some layer sees distances up to the target, with RoPE."""
        seen = [layer for layer in self.layers if layer.span is None or layer.span >= target]
        if any(layer.parameters and layer.scaled for layer in seen):
            return
        if seen:
            raise RopeError(
                f"global layers of model type {self.model_type!r} have no RoPE: positions mean "
                f"nothing there, a jump trains no distance, and the local layers see "
                f"{self.local_span(target)} positions back only; the model takes longer text as "
                f"it is"
            )
        span = max(layer.span or 0 for layer in self.layers)
        remedy = "set sliding_window to null in its config, so that every layer sees all positions"
        if span > self.base.window:
            remedy = f"choose a target of at most {span} tokens, or {remedy}"
        raise RopeError(
            f"layers of model type {self.model_type!r} see {span} positions back only "
            f"(sliding_window) and none of them sees {target}: nothing reaches across a jump; "
            f"{remedy}"
        )


def read(config: Any, named: int = 0) -> Family:
    """The layers of a model from its Transformers config.

    named  tokens that the tokenizer was saved with; 0: unknown

    Raises RopeError for a model that can't be extended, by name and with the reason.
    """
    name = getattr(config, "model_type", type(config).__name__)
    if hasattr(config, "get_text_config") and config.get_text_config() is not config:
        raise RopeError(
            f"model type {name!r} holds other parts beside its text model: only text models can "
            f"be extended"
        )
    kinds = _kinds(config)
    for kind in kinds:
        if kind not in (GLOBAL, LOCAL):
            why = WITHOUT_POSITIONS.get(kind, "it is not known what they see")
            raise RopeError(
                f"model type {name!r} has {kinds.count(kind)} layers of kind {kind!r}: {why}, and "
                f"a jump in positions does not exist for them; extend such a model on long text"
            )
    base = rope.read_base(config, named)
    rotated = _rotated(config, kinds)
    by_kind = any(isinstance(value, dict) for value in config.rope_parameters.values())
    span = getattr(config, "sliding_window", None) or None
    groups = []
    for kind, turns in dict.fromkeys(zip(kinds, rotated, strict=True)):
        parameters = config.rope_parameters
        if by_kind:
            parameters = parameters.get(kind)
        groups.append(
            Layers(
                kind,
                tuple(i for i, layer_kind in enumerate(zip(kinds, rotated, strict=True))
                      if layer_kind == (kind, turns)),
                span if kind == LOCAL else None,
                dict(parameters) if turns and parameters else None,
                turns and bool(parameters) and (kind == GLOBAL or not by_kind),
            )
        )  # fmt: skip
    return Family(name, base, tuple(groups), by_kind)


def scaled_config(
    config: Any, parameters: rope.Parameters, base: rope.Base, target: int, headroom: float = 1.0
) -> Any:
    """The config with `parameters` where the family has them, and a window of `target` tokens.

    headroom  in all, of this extension and those before
    """
    before = config.rope_parameters
    kept = rope.of_global_layers(config).get("partial_rotary_factor")
    if kept is not None:  # Phi-3 can't be saved without it, be it 1
        parameters = {**parameters, "partial_rotary_factor": kept}
    if any(isinstance(value, dict) for value in before.values()):
        config.rope_parameters = {**before, GLOBAL: parameters}
    else:
        config.rope_parameters = parameters
    original = parameters.get("original_max_position_embeddings")
    if hasattr(config, "original_max_position_embeddings"):  # Phi-3: goes before its parameters
        config.original_max_position_embeddings = original or base.window
    if parameters.get("rope_type") != "dynamic":  # which counts the length met from this number on
        config.max_position_embeddings = target
    if headroom != 1.0:
        setattr(config, rope.HEADROOM_KEY, headroom)
    return config


OLDER_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Where a family's older configs had other names at the top level."""


def older_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """What readers of the older layout look for at the top level of config.json.

    config  what Transformers 5 wrote, with `rope_parameters`
    """
    written = dict(config.get("rope_parameters") or {})
    keys: dict[str, Any] = {}
    if isinstance(written.get(GLOBAL), dict):
        local = written.get(LOCAL) or {}
        if config.get("model_type", "").startswith("gemma3"):
            keys["rope_local_base_freq"] = local.get("rope_theta")
        written = dict(written[GLOBAL])
    names = OLDER_NAMES.get(config.get("model_type", ""), {})
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in written:
            keys[names.get(key, key)] = keys[key] = written[key]
    written.pop("rope_theta", None)
    if written.get("rope_type", "default") != "default":
        keys["rope_scaling"] = written
    return keys


def _kinds(config: Any) -> list[str]:
    """Layer type of each layer; families that name none have one for all."""
    named = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if named:
        return list(named)
    span = getattr(config, "sliding_window", None)
    return [LOCAL if span else GLOBAL] * config.num_hidden_layers


def _rotated(config: Any, kinds: Sequence[str]) -> list[bool]:
    """Whether each layer has RoPE."""
    listed = getattr(config, "no_rope_layers", None)
    if listed:
        return [bool(flag) for flag in listed[: len(kinds)]]
    if config.model_type in GLOBAL_WITHOUT_ROPE and LOCAL in kinds:
        return [kind == LOCAL for kind in kinds]
    return [True] * len(kinds)
