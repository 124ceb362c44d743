"""Every family that people have: what is read of it, and a jump against a real long text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.data.rows import collate
from endprompt.errors import RopeError
from endprompt.models import checkpoint, families, known, masks
from endprompt.train import position_check
from endprompt.train.loss import hidden_states, weighted_loss
from tiny_families import (
    EXTENDED,
    TINY_SPAN,
    TINY_WINDOW,
    tiny_config,
    tiny_known,
    tiny_known_model,
)

TARGET = 2 * TINY_WINDOW
LOCAL = [name for name in EXTENDED if "sliding_attention" in
         (getattr(tiny_known(name), "layer_types", None) or ())]  # fmt: skip
BY_KIND = ("Gemma 3 1B", "Gemma 3, larger (text)", "Olmo 3")


def extended(name: str, **changes: Any) -> tuple[Any, families.Family, rope.Parameters]:
    """A tiny model of a family with the RoPE that an extension by 2 gives it."""
    config = tiny_known(name, **changes)
    family = families.read(config)
    recipe = recipes.load("recall-anchors").replace({"rope.scaling": family.suited("yarn")})
    wanted = checkpoint.scaled_parameters(family, recipe, TARGET)
    config = families.scaled_config(config, wanted, family.base, TARGET)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), family, wanted


def failed(model: Any, family: families.Family, wanted: Any, **changes: Any) -> set[str]:
    checks = position_check.check_positions(model, family, TARGET, wanted=wanted, **changes)
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("name", EXTENDED)
def test_family_passes_the_position_check(name: str) -> None:
    assert failed(*extended(name)) == set()


@pytest.mark.parametrize("name", EXTENDED)
def test_a_short_row_with_its_jump_gives_the_logits_of_a_real_text(name: str) -> None:
    """A real text of L positions in which nobody sees the tokens between prefix and terminal.

    Its masks are Transformers' own, by index, which in a text without jumps is the position, and
    the tokens between are taken out of both kinds of layer: a local layer of the first terminal
    tokens would see the nearest of them, and a short row doesn't have them. Float32; the order of
    sums differs, hence a tolerance of 1e-4 of the largest logit.
    """
    model, _, _ = extended(name)
    batch = collate([position_check.probe_row(97, TARGET)])
    positions_T, P = batch["position_ids"][0], position_check.PREFIX_TOKENS
    rng = torch.Generator().manual_seed(1)
    long_L = torch.randint(3, 97, (TARGET,), generator=rng)
    long_L[positions_T] = batch["input_ids"][0]
    kept_L = torch.zeros(TARGET, dtype=torch.bool)
    kept_L[positions_T] = True

    model.set_attn_implementation("eager")
    hidden = torch.finfo(torch.float32).min
    seen = {}
    index_L = torch.arange(TARGET)
    for kind in ("full_attention", "sliding_attention"):
        near_LL = index_L[:, None] - index_L < (
            model.config.sliding_window if kind == "sliding_attention"
            and getattr(model.config, "sliding_window", None) else TARGET
        )  # fmt: skip
        causal_LL = index_L[:, None] >= index_L
        visible_LL = causal_LL & near_LL & (kept_L | (index_L[:, None] == index_L))
        seen[kind] = torch.where(visible_LL, 0.0, hidden)[None, None]
    by_kind = getattr(model.config, "layer_types", None)
    with torch.no_grad():
        real_LV = model(
            input_ids=long_L[None],
            position_ids=index_L[None],
            attention_mask=seen if by_kind else seen["sliding_attention"],
            use_cache=False,
        ).logits[0]
        short_TV = model(
            input_ids=batch["input_ids"],
            position_ids=positions_T[None],
            attention_mask=masks.of_row(model, positions_T[None], batch["attention_mask"]),
            use_cache=False,
        ).logits[0]
    size = float(real_LV.abs().max())
    error = (short_TV[P:] - real_LV[positions_T[P:]]).abs().max()
    assert float(error) < 1e-4 * size
    # and the row with everything at hand is another one: what was compared is not constant
    assert float((real_LV[-1] - real_LV[-2]).abs().max()) > 1e-2 * size


@pytest.mark.parametrize("name", LOCAL)
def test_masks_of_a_row_without_jumps_are_those_of_transformers(name: str) -> None:
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    model = tiny_known_model(name, attention="eager")
    ids = torch.randint(3, 97, (2, 80))
    ones = torch.ones_like(ids)
    ones[1, 70:] = 0
    found = masks.of_row(model, torch.arange(80).expand(2, -1), ones)
    call = {
        "config": model.config,
        "inputs_embeds": torch.zeros(2, 80, 64),
        "attention_mask": ones,
        "cache": None,
    }
    assert torch.equal(found["full_attention"], create_causal_mask(**call))
    assert torch.equal(found["sliding_attention"], create_sliding_window_causal_mask(**call))


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_mask_made_of_indices_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Transformers makes it of a mask of ones."""
    real = masks.of_row

    def by_index(model: Any, position_ids_BT: Any, *rest: Any) -> Any:
        return real(model, torch.arange(position_ids_BT.shape[1])[None], *rest)

    monkeypatch.setattr(masks, "of_row", by_index)
    assert failed(*extended(name)) == {"local layers alone see nothing far"}


@pytest.mark.parametrize("name", LOCAL)
def test_masks_by_layer_that_do_not_arrive_are_caught(name: str) -> None:
    model, family, wanted = extended(name)
    forward = model.forward
    ones = torch.ones(1, position_check.PREFIX_TOKENS + position_check.TERMINAL_TOKENS)

    def plain(**given: Any) -> Any:
        if isinstance(given["attention_mask"], dict):
            given["attention_mask"] = ones[:, : given["input_ids"].shape[1]].long()
        return forward(**given)

    model.forward = plain
    model.config.sliding_window = TINY_SPAN
    assert "local layers alone see nothing far" in failed(model, family, wanted)


@pytest.mark.parametrize("name", BY_KIND)
def test_scaling_of_the_wrong_kind_of_layers_is_caught(name: str) -> None:
    """Local layers scaled beside the global ones; global ones left as they were."""
    _, family, wanted = extended(name)
    local = dict(wanted, rope_theta=family.layers[0].parameters["rope_theta"])
    for parameters, faults in (
        ({"full_attention": wanted, "sliding_attention": local},
         {"frequencies as written", "cos and sin reach the target", "queries turn as written"}),
        ({"full_attention": family.base.own,
          "sliding_attention": family.layers[0].parameters},
         {"frequencies as written", "cos and sin reach the target", "queries turn as written"}),
    ):  # fmt: skip
        torch.manual_seed(0)
        config = tiny_known(name, max_position_embeddings=TARGET)
        config.rope_parameters = parameters
        found = failed(AutoModelForCausalLM.from_config(config).eval(), family, wanted)
        assert "frequencies as written" in found
        assert found <= faults


SCALED = [name for name in EXTENDED if families.read(tiny_known(name)).base.parameters]


@pytest.mark.parametrize("name", SCALED)
def test_an_old_factor_that_is_lost_is_caught(name: str) -> None:
    """The new factor alone, as an extension that took the base for an unscaled one would write."""
    config = tiny_known(name)
    family = families.read(config)
    _, _, wanted = extended(name)
    lost = {**wanted, "factor": 2.0}
    if "long_factor" in lost:
        lost["long_factor"] = [2.0] * len(lost["long_factor"])
    config = families.scaled_config(config, lost, family.base, TARGET)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert "frequencies as written" in failed(model, family, wanted)
    assert "the base's own scaling is kept" in failed(model, family, lost)


@pytest.mark.parametrize("name", ["Qwen 3 with YaRN", "Olmo 3", "gpt-oss", "Phi-3"])
def test_an_attention_factor_left_at_the_old_one_is_caught(name: str) -> None:
    config = tiny_known(name)
    family = families.read(config)
    _, _, wanted = extended(name)
    _, old = family.base.frequencies(TARGET)
    config = families.scaled_config(
        config, {**wanted, "attention_factor": old}, family.base, TARGET
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert failed(model, family, wanted) == {"cos and sin reach the target"}


def test_a_layer_that_turns_where_it_has_no_rope_is_caught() -> None:
    """And one that doesn't where it should."""
    model, family, wanted = extended("SmolLM3")
    for layer, use in ((3, 1), (0, 0)):
        attention = model.model.layers[layer].self_attn
        before, attention.use_rope = attention.use_rope, use
        assert failed(model, family, wanted) == {"queries turn as written"}
        attention.use_rope = before


@pytest.mark.parametrize("name", ["gpt-oss", "Gemma 3 1B", "Olmo 3"])
def test_a_terminal_in_a_family_with_local_layers_trains_the_prefix(name: str) -> None:
    model, _, _ = extended(name)
    batch = collate([position_check.probe_row(97, TARGET)])
    found = weighted_loss(model, batch)
    found.weighted.backward()
    assert torch.isfinite(found.weighted)
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_padding_on_the_right_changes_nothing_in_local_layers() -> None:
    model, _, _ = extended("Gemma 3 1B")
    long, short = position_check.probe_row(97, TARGET), position_check.probe_row(97, TARGET)
    short = {key: value[:50] for key, value in short.items()}
    both, alone = collate([long, short]), collate([short])
    with torch.no_grad():
        padded = hidden_states(model, both)[0][1, :50]
        plain = hidden_states(model, alone)[0][0]
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(hidden_states(model, both)[0]).all()


@pytest.mark.parametrize("name", [n for n, each in known.FAMILIES.items() if each.refused])
def test_what_cannot_be_extended_is_refused_by_name(name: str) -> None:
    family = known.FAMILIES[name]
    config = family.read()

    def extend() -> None:
        families.read(config).require_reach(2 * config.max_position_embeddings)

    with pytest.raises(RopeError, match=f"'{family.model_type}'.*{family.refused}"):
        extend()


def test_a_model_whose_layers_all_see_a_part_is_extended_as_far_as_they_see() -> None:
    family = families.read(tiny_config("mistral", sliding_window=512))
    family.require_reach(512)
    with pytest.raises(
        RopeError, match=r"see 512 positions .* target of at most 512 tokens, or se"
    ):
        family.require_reach(513)


def test_layers_are_read_with_their_kind_and_rope() -> None:
    family = families.read(known.FAMILIES["Gemma 3, larger (text)"].read())
    local, full = family.layers
    assert (local.name, len(local.indices), local.span, local.scaled) == ("local", 52, 1024, False)
    assert (full.name, len(full.indices), full.span, full.scaled) == ("global", 10, None, True)
    assert local.parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert family.base.window == 131072
    assert family.base.parameters["factor"] == 8
    rotated, plain = families.read(known.FAMILIES["SmolLM3"].read()).layers
    assert (len(rotated.indices), plain.indices[:2]) == (27, (3, 7))
    assert (plain.name, plain.scaled) == ("global without RoPE", False)


@pytest.mark.parametrize("name", EXTENDED)
def test_effective_frequencies_are_the_bases_divided(name: str) -> None:
    """No pair turns faster than in the base, none slower than by the factor, which the last has."""
    _, family, wanted = extended(name)
    before, _ = family.base.frequencies(TARGET)
    after, _ = rope.inverse_frequencies(
        wanted, family.base.rotary_size, length=TARGET, window=TINY_WINDOW
    )
    times = TARGET / TINY_WINDOW
    s = times * rope.usual_headroom(rope.name_of(wanted), times, family.base)
    assert (after <= before * (1 + 1e-9)).all()
    assert (after >= before / s * (1 - 1e-9)).all()
    assert np.isclose(after[-1], before[-1] / s)
