"""What an extension does to a model's layers, and which engine can express it: as tables.

For one model, what `endprompt doctor` begins with; for all known families, docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from endprompt import rope
from endprompt.errors import RopeError
from endprompt.export import engines
from endprompt.models import families, known


def rope_words(parameters: rope.Parameters | None) -> str:
    """RoPE settings in a few words.

    >>> rope_words({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
    ...             "original_max_position_embeddings": 32768})
    'yarn by 4 from 32,768, theta 1,000,000'
    """
    if parameters is None:
        return "none"
    kind = parameters.get("rope_type", "default")
    words = "unscaled" if kind == "default" else kind
    if parameters.get("factor") and kind != "default":
        words += f" by {parameters['factor']:g}"
    if "original_max_position_embeddings" in parameters:
        words += f" from {parameters['original_max_position_embeddings']:,}"
    partial = parameters.get("partial_rotary_factor") or 1.0
    share = f", {partial:.0%} of each head" if partial != 1 else ""
    return f"{words}, theta {parameters['rope_theta']:,.0f}{share}"


def layer_rows(
    family: families.Family, wanted: rope.Parameters, target: int
) -> list[tuple[str, str, str, str, str]]:
    """One row a kind of layer: how many, what they see, RoPE before and after, mask of a row.

    wanted  `rope_parameters` of the layers that are scaled, at a window of `target` tokens
    """
    rows = []
    for layers in family.layers:
        own = layers.parameters
        if layers.scaled and family.base.parameters:
            own = family.base.own
        is_local = layers.span is not None and layers.span < target
        rows.append(
            (
                f"{len(layers.indices)} {layers.name}",
                f"{layers.span:,} positions back" if layers.span else "all before",
                rope_words(own),
                rope_words(wanted) if layers.scaled else "as it is",
                "from positions" if is_local else "causal",
            )
        )
    return rows


HEADER = ("layers", "see", "RoPE of the base", "extended", "mask")


def balance_words(config: Any) -> str:
    """How a mixture of experts is balanced, or "" for a model without experts."""
    if not (getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)):
        return ""
    weight = getattr(config, "router_aux_loss_coef", 0.0)
    if getattr(config, "output_router_logits", False):
        return f"load-balancing loss times {weight:g}"
    return "no load-balancing loss (output_router_logits is off in its config)"


def unable(values: Mapping[str, Any]) -> dict[str, str]:
    """Engines that can't express the RoPE of a config.json, each with the reason."""
    obstacles = {engine: engines.obstacle(engine, values) for engine in engines.ENGINES}
    return {engine: why for engine, why in obstacles.items() if why}


def markdown() -> str:
    """The page docs/models.md: every known family, extended to twice its window."""
    extended, refused = [], []
    for name, entry in known.FAMILIES.items():
        config = entry.read()
        try:
            family = families.read(config)
            target = 2 * family.base.window
            family.require_reach(target)
        except RopeError as error:
            refused.append(f"| {name} | `{entry.example}` | {error} |\n")
            continue
        scaling = family.suited("yarn")
        s = rope.factor(family.base.window, target)
        wanted = rope.parameters(family.base, scaling, s)
        rows = layer_rows(family, wanted, target)
        config = families.scaled_config(config, wanted, family.base, target)
        without = ", ".join(unable(engines.read_of(config))) or "none"
        columns = ["<br>".join(column) for column in zip(*rows, strict=True)]
        cells = [*columns, balance_words(config) or "no experts", without]
        extended.append(
            f"| **{name}** `{entry.example}` | {family.base.window:,} | {' | '.join(cells)} |\n"
        )
    titles = ["family", "window", *HEADER, "router", "engines without it"]
    lines = ["| ", " | ".join(titles), " |\n|", " --- |" * len(titles), "\n", *extended]
    return PAGE.format(extended="".join(lines), refused="".join(refused))


PAGE = """# Models

Made by `endprompt doctor --families`. Each family is read from the numbers of the checkpoint named,
and extended to twice its window; `endprompt doctor MODEL --to LENGTH` shows the same for a model of
yours, and proves it on its weights.

A base that is **scaled already** keeps its rule: the factor grows over the *original* window, with
a [headroom](serving.md#a-factor-above-l-l0) counted once, and YaRN's factor on cos and sin follows
the total. `--scaling pi` and `longrope` come on top of any
rule but dynamic NTK, as explicit factors (the `longrope` form); others are refused with the reason.

**Local layers** see the W nearest positions. Transformers makes their mask from indices, by which
the first tokens after a jump would see the end of the prefix; here it is made from positions, in
`train`, `doctor` and `inspect`. Where a family has RoPE settings for each kind of layer, the global
layers alone are scaled; where it has one RoPE, all layers are. Layers **without RoPE** learn
length, not distance.

What trains is the next token, with a mixture's load-balancing loss where its config asks for it.
*Engines without it* are those that can't express the scaling ([serving](serving.md)); whether they
know the architecture is theirs to say.

Each row is held by the tests of that name, on a tiny random model:
`tests/models/test_known_families.py` (the position check; the logits of a short row with its jump
against those of a real text of L positions; each planted fault) and
`tests/train/test_known_runs.py` (trained, saved, loaded by plain `AutoModelForCausalLM` in a
process of its own, generating past the old window).

{extended}
## Refused

| family | checkpoint | why |
| --- | --- | --- |
{refused}"""
