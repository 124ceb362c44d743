"""Frequencies against Transformers' own, and every model that cannot be scaled refused by name."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from endprompt import rope
from endprompt.errors import RopeError
from tiny_families import tiny_config

few = settings(max_examples=30, deadline=None)
"""Transformers' configs take milliseconds each."""
SCALINGS = ("pi", "dynamic", "yarn", "llama3", "longrope")
bases = st.builds(
    rope.Base,
    theta=st.sampled_from([100.0, 1e4, 1e5, 5e5, 1e6, 5e6]),
    rotary_size=st.sampled_from([8, 16, 64, 80, 128]),
    window=st.sampled_from([128, 2048, 8192, 131072]),
)
factors = st.floats(1.0, 64.0)


def config_of(base: rope.Base, parameters: dict[str, Any]) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=base.rotary_size, num_attention_heads=1, head_dim=base.rotary_size,
        max_position_embeddings=base.window,
    )  # fmt: skip
    config.rope_parameters = parameters
    return config


def theirs(base: rope.Base, parameters: dict[str, Any], length: int) -> tuple[np.ndarray, float]:
    """What Transformers initialises a rotary embedding with at a length."""
    init = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    found, scale = init(config_of(base, parameters), torch.device("cpu"), seq_len=length)
    return found.double().numpy(), float(scale)


@pytest.mark.parametrize("scaling", SCALINGS)
@few
@given(base=bases, s=factors, relative=st.floats(0.1, 64.0))
def test_frequencies_are_those_of_transformers(
    scaling: str, base: rope.Base, s: float, relative: float
) -> None:
    parameters = rope.parameters(base, scaling, s)
    length = max(1, int(base.window * relative))
    expected, expected_scale = theirs(base, parameters, length)
    found, scale = rope.inverse_frequencies(
        parameters, base.rotary_size, length=length, window=base.window
    )
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert scale == pytest.approx(expected_scale, rel=1e-6)


@few
@given(bases, factors, st.floats(1.5, 60.0), st.floats(0.1, 1.4), st.floats(0.5, 2.0))
def test_yarn_with_its_settings_is_that_of_transformers(
    base: rope.Base, s: float, fast: float, slow: float, size: float
) -> None:
    parameters = rope.parameters(
        base, "yarn", s, beta_fast=fast, beta_slow=slow, attention_factor=size
    )
    expected, scale = theirs(base, parameters, base.window)
    found = rope.inverse_frequencies(parameters, base.rotary_size)
    np.testing.assert_allclose(found[0], expected, rtol=2e-5)
    assert found[1] == scale == pytest.approx(size)


@few
@given(bases, factors, st.data())
def test_longrope_with_given_factors_is_that_of_transformers(
    base: rope.Base, s: float, data: st.DataObject
) -> None:
    pairs = base.rotary_size // 2
    drawn = st.lists(st.floats(1.0, 64.0), min_size=pairs, max_size=pairs)
    long, short = data.draw(drawn), data.draw(drawn)
    size = data.draw(st.none() | st.floats(0.5, 2.0))
    parameters = rope.parameters(
        base, "longrope", s, long_factor=long, short_factor=short, attention_factor=size
    )
    for length in (base.window, base.window + 1):
        expected, scale = theirs(base, parameters, length)
        found = rope.inverse_frequencies(parameters, base.rotary_size, length=length)
        np.testing.assert_allclose(found[0], expected, rtol=2e-5)
        assert found[1] == pytest.approx(scale)


@few
@given(bases, st.floats(1.0, 8.0), st.floats(0.5, 1.9), st.floats(2.0, 8.0))
def test_llama3_with_its_settings_is_that_of_transformers(
    base: rope.Base, s: float, low: float, high: float
) -> None:
    parameters = rope.parameters(base, "llama3", s, low_freq_factor=low, high_freq_factor=high)
    expected, _ = theirs(base, parameters, base.window)
    found, _ = rope.inverse_frequencies(parameters, base.rotary_size)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@given(bases, factors)
def test_ntk_keeps_the_first_frequency_and_divides_the_last_by_s(base: rope.Base, s: float) -> None:
    parameters = rope.parameters(base, "ntk", s)
    assert parameters["rope_type"] == "default"
    plain, _ = rope.inverse_frequencies(rope.parameters(base, "none", 1.0), base.rotary_size)
    found, _ = rope.inverse_frequencies(parameters, base.rotary_size)
    assert found[0] == plain[0] == 1.0
    assert plain[-1] / found[-1] == pytest.approx(s, rel=1e-9)


@given(bases, factors)
def test_no_scaling_turns_faster_than_the_base_or_slower_than_interpolation(
    base: rope.Base, s: float
) -> None:
    plain, _ = rope.inverse_frequencies(rope.parameters(base, "none", 1.0), base.rotary_size)
    for scaling in ("pi", "ntk", "yarn", "llama3", "longrope"):
        found, _ = rope.inverse_frequencies(rope.parameters(base, scaling, s), base.rotary_size)
        assert (found <= plain * (1 + 1e-12)).all()
        assert (found >= plain / s * (1 - 1e-12)).all()


@given(bases, factors, st.integers(1, 4))
def test_dynamic_is_unscaled_inside_the_window_and_ntk_beyond(
    base: rope.Base, s: float, times: int
) -> None:
    parameters = rope.parameters(base, "dynamic", s)
    size = base.rotary_size
    inside, _ = rope.inverse_frequencies(parameters, size, length=5, window=base.window)
    plain, _ = rope.inverse_frequencies(rope.parameters(base, "none", 1.0), size)
    np.testing.assert_allclose(inside, plain, rtol=1e-12)
    beyond, _ = rope.inverse_frequencies(
        parameters, size, length=times * base.window, window=base.window
    )
    grown = rope.parameters(base, "ntk", s * times - (s - 1))
    np.testing.assert_allclose(beyond, rope.inverse_frequencies(grown, size)[0], rtol=1e-9)


def test_dynamic_without_a_length_is_refused() -> None:
    parameters = rope.parameters(rope.Base(1e4, 64, 2048), "dynamic", 4.0)
    with pytest.raises(RopeError, match="give length and window"):
        rope.inverse_frequencies(parameters, 64)


@given(bases, factors)
def test_stretch_leaves_no_angle_beyond_what_the_window_showed(base: rope.Base, s: float) -> None:
    """Pairs that did not turn once are interpolated in full; the others less, rising."""
    long = np.array(rope.stretch(base, s))
    plain, _ = rope.inverse_frequencies(rope.parameters(base, "none", 1.0), base.rotary_size)
    turned_once = base.window * plain >= 2 * np.pi
    np.testing.assert_allclose(long[~turned_once], s)
    assert (np.diff(long) >= -1e-9).all()
    assert long[0] == 1.0 or not turned_once[0]
    assert rope.stretch(base, s, critical=0) == [s] * (base.rotary_size // 2)


@pytest.mark.parametrize("scaling", [*SCALINGS, "none", "ntk"])
def test_written_parameters_name_theta_float_factors_and_the_window(scaling: str) -> None:
    written = rope.parameters(rope.Base(5e5, 64, 8192), scaling, 8)
    assert isinstance(written["rope_theta"], float)
    assert isinstance(written.get("factor", 8.0), float)
    if scaling in ("yarn", "llama3", "longrope"):
        assert written["original_max_position_embeddings"] == 8192
    assert "partial_rotary_factor" not in written


def test_partial_rotary_factor_is_kept() -> None:
    base = rope.read_base(tiny_config("gpt_neox"))
    assert (base.partial, base.rotary_size) == (0.25, 4)
    assert rope.parameters(base, "yarn", 4.0)["partial_rotary_factor"] == 0.25


@pytest.mark.parametrize(
    ("family", "theta"),
    [("llama", 1e4), ("mistral", 1e4), ("qwen2", 1e4), ("qwen3", 1e4), ("gemma", 1e4),
     ("phi3", 1e4), ("smollm3", 2e6), ("olmo", 1e4), ("olmo2", 1e4)],
)  # fmt: skip
def test_base_is_read_from_every_family(family: str, theta: float) -> None:
    changes = {"sliding_window": None} if family == "mistral" else {}
    assert rope.read_base(tiny_config(family, **changes)) == rope.Base(theta, 16, 128)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {}, "model type 'gpt2' has no RoPE"),
        ("gptj", {}, "model type 'gptj' has no RoPE"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 5e5}},
            "'llama' is scaled by a rule 'proportional' that is not known: one of linear",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5,
                                 "mrope_section": [4, 2, 2]}},
            "'llama' has several axes",
        ),
    ],
)  # fmt: skip
def test_models_that_cannot_be_scaled_are_refused_by_name(
    family: str, changes: dict[str, Any], message: str
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[family](**changes)
    with pytest.raises(RopeError, match=message):
        rope.read_base(config)


def test_scaling_that_a_family_cannot_hold_is_refused() -> None:
    with pytest.raises(RopeError, match=r"'phi3' takes no scaling 'yarn': set .* ntk or longrope"):
        rope.check_scaling("phi3", "yarn")
    rope.check_scaling("phi3", "longrope")
    rope.check_scaling("llama", "yarn")


def test_config_without_theta_is_refused() -> None:
    config = type("Config", (), {"model_type": "odd", "rope_parameters": {"rope_type": "default"}})
    with pytest.raises(RopeError, match="'odd' names no rope_theta"):
        rope.read_base(config())


def scaled_base(scaling: str, base: rope.Base, f: float) -> tuple[LlamaConfig, rope.Base]:
    """A config that was scaled by a rule and f, as it comes from a hub, and what is read of it."""
    config = config_of(base, rope.parameters(base, scaling, f))
    if scaling != "dynamic":
        config.max_position_embeddings = round(f * base.window)
    return config, rope.read_base(config, named=round(f * base.window))


def total_of(config: LlamaConfig, parameters: dict[str, Any], length: int) -> tuple[Any, float]:
    """What Transformers initialises with for parameters put in place of a config's own."""
    config = copy.deepcopy(config)
    config.rope_parameters = parameters
    init = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    found, size = init(config, torch.device("cpu"), seq_len=length)
    return found.double().numpy(), float(size)


@pytest.mark.parametrize("scaling", ["pi", "dynamic", "yarn", "llama3"])
@few
@given(base=bases, f=st.sampled_from([2.0, 4.0, 8.0]), s=st.sampled_from([2.0, 3.0, 16.0]))
def test_a_scaled_base_keeps_its_rule_with_the_total_factor_over_its_original_window(
    scaling: str, base: rope.Base, f: float, s: float
) -> None:
    config, read = scaled_base(scaling, base, f)
    assert read.window == round(f * base.window)
    length = round(f * s * base.window)
    once = rope.parameters(base, scaling, f * s)
    expected, size = theirs(base, once, length)
    grown = rope.parameters(read, scaling, s)
    found, found_size = total_of(config, grown, length)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    ours, our_size = rope.inverse_frequencies(
        grown, base.rotary_size, length=length, window=base.window
    )
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    assert size == pytest.approx(found_size) == pytest.approx(our_size)


@pytest.mark.parametrize("top", ["none", "pi", "dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("scaling", ["pi", "dynamic", "yarn", "llama3", "longrope"])
def test_a_scaled_base_is_its_own_bit_for_bit_where_nothing_is_added(
    scaling: str, top: str
) -> None:
    config, read = scaled_base(scaling, rope.Base(5e5, 64, 2048), 4.0)
    written = rope.parameters(read, top, 1.0)
    before = total_of(config, config.rope_parameters, 9000)
    after = total_of(config, written, 9000)
    assert (before[0] == after[0]).all()
    assert before[1] == after[1]


@pytest.mark.parametrize("top", ["pi", "longrope"])
@pytest.mark.parametrize("scaling", ["pi", "yarn", "llama3", "longrope"])
def test_another_rule_goes_on_top_as_explicit_factors(scaling: str, top: str) -> None:
    """Beyond the base's window its frequencies divided by the rule's; inside it, its own."""
    base, s = rope.Base(5e5, 64, 2048), 4.0
    config, read = scaled_base(scaling, base, 4.0)
    own, own_size = total_of(config, config.rope_parameters, 8192)
    written = rope.parameters(read, top, s)
    found, size = total_of(config, written, 32768)
    divisors = np.array(rope.stretch(read, s)) if top == "longrope" else s
    np.testing.assert_allclose(found, own / divisors, rtol=1e-5)
    ours, our_size = rope.inverse_frequencies(written, 64, length=32768)
    np.testing.assert_allclose(ours, found, rtol=2e-5)
    assert our_size == pytest.approx(size)
    if top == "pi":
        assert size == pytest.approx(own_size)
    elif scaling != "pi":
        assert size > own_size
    if written["rope_type"] == "longrope" and scaling != "longrope":
        inside, _ = total_of(config, written, 8192)
        np.testing.assert_allclose(inside, own, rtol=2e-6)


@pytest.mark.parametrize(
    ("scaling", "top", "why"),
    [
        ("yarn", "llama3", "by 'yarn' .factor 4., and 'llama3' has no form .* to yarn, or to pi"),
        ("llama3", "yarn", "by 'llama3' .factor 4., and 'yarn' has no form on top"),
        ("pi", "ntk", "by 'linear' .factor 4., and 'ntk' has no form on top"),
        ("longrope", "dynamic", "by 'longrope' .factor 4., and 'dynamic' has no form"),
        ("dynamic", "pi", "dynamic NTK turns differently at every length; set rope.scaling to dyn"),
    ],
)
def test_a_rule_without_a_form_on_top_is_refused_with_the_reason(
    scaling: str, top: str, why: str
) -> None:
    _, read = scaled_base(scaling, rope.Base(5e5, 64, 2048), 4.0)
    with pytest.raises(RopeError, match=why):
        rope.parameters(read, top, 2.0)


@few
@given(f=st.floats(1.5, 40.0), s=st.floats(1.5, 8.0), ratio=st.floats(0.5, 2.0))
def test_an_attention_factor_that_is_written_follows_the_total_factor(
    f: float, s: float, ratio: float
) -> None:
    """By as much as YaRN's own would."""
    base = rope.Base(1e6, 64, 2048)
    size = ratio * (0.1 * math.log(f) + 1)
    config = config_of(base, rope.parameters(base, "yarn", f, attention_factor=size))
    grown = rope.parameters(rope.read_base(config), "yarn", s)
    assert grown["attention_factor"] == pytest.approx(ratio * (0.1 * math.log(f * s) + 1))
    given = rope.parameters(rope.read_base(config), "yarn", s, attention_factor=1.5)
    assert given["attention_factor"] == 1.5


def test_other_settings_of_the_bases_own_rule_are_refused() -> None:
    _, read = scaled_base("yarn", rope.Base(5e5, 64, 2048), 4.0)
    with pytest.raises(
        RopeError, match=r"by 'yarn' with beta_fast 32, .* leave rope.beta_fast out"
    ):
        rope.parameters(read, "yarn", 2.0, beta_fast=16.0)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_of_deepseek_and_gpt_oss_is_read_as_they_write_it(truncate: bool) -> None:
    parameters = {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": truncate, "original_max_position_embeddings": 4096,
        "mscale": 1.0, "mscale_all_dim": 0.7,
    }  # fmt: skip
    base = rope.Base(150000.0, 64, 131072)
    config = config_of(base, parameters)
    read = rope.read_base(config)
    for s in (1.0, 2.0):
        written = rope.parameters(read, "yarn", s)
        expected, size = total_of(config, written, 131072)
        found, found_size = rope.inverse_frequencies(written, 64)
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        assert found_size == pytest.approx(size)
        assert written["factor"] == 32 * s


@pytest.mark.parametrize(
    ("window", "named", "scaling", "expected"),
    [
        (16384, 0, {"type": "linear", "factor": 4.0}, 16384),
        (4096, 16384, {"type": "linear", "factor": 4.0}, 16384),
        (4096, 10**30, {"type": "linear", "factor": 4.0}, 4096),
        (32768, 0, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
         131072),
        (131072, 0, {"rope_type": "yarn", "factor": 4.0,
                     "original_max_position_embeddings": 32768}, 131072),
        (2048, 8192, {"type": "dynamic", "factor": 4.0}, 8192),
    ],
)  # fmt: skip
def test_configs_of_the_older_layout_are_read(
    window: int, named: int, scaling: dict[str, Any], expected: int
) -> None:
    """The window is what the base was scaled to, also where the config keeps the original."""
    config = LlamaConfig(
        max_position_embeddings=window, rope_theta=20000.0, rope_scaling=dict(scaling)
    )
    read = rope.read_base(config, named)
    assert (read.window, read.theta) == (expected, 20000.0)
    assert read.parameters is not None
    grown = rope.parameters(read, rope.name_of(read.parameters), 2.0)
    assert grown["factor"] == 2 * scaling["factor"]
    assert "type" not in grown
    tokenizer = SimpleNamespace(model_max_length=named)
    assert rope.window_of(config, tokenizer) == expected


@given(st.integers(1, 10**5), st.integers(1, 64), st.integers(1, 1000))
def test_factor_covers_the_target_and_no_more(window: int, times: int, rest: int) -> None:
    target = window * times + min(rest, window)
    s = rope.factor(window, target)
    assert s == int(s)
    assert window * s >= target > window * (s - 1)
    assert rope.factor(window, target, 0.5) == s / 2
    assert rope.factor(window, target, 1.5) == 1.5 * s


@pytest.mark.parametrize("first", [2, 4])
@pytest.mark.parametrize("scaling", ["yarn", "llama3", "pi", "dynamic"])
def test_two_extensions_by_the_usual_headroom_are_one(scaling: str, first: int) -> None:
    def factor(base: rope.Base, target: int) -> float:
        headroom = rope.usual_headroom(scaling, target / base.window, base)
        return rope.factor(base.window, target, headroom)

    base = rope.Base(1e4, 64, 2048)
    had = rope.usual_headroom(scaling, first)
    half = rope.parameters(base, scaling, factor(base, 2048 * first))
    extended = rope.Base(1e4, 64, 2048 * first, parameters=half, headroom=had)
    again = rope.parameters(extended, scaling, factor(extended, 16384))
    assert again == rope.parameters(base, scaling, factor(base, 16384))


def test_target_inside_the_window_is_refused() -> None:
    with pytest.raises(RopeError, match="target 8192 tokens is not above the model's window of 81"):
        rope.factor(8192, 8192)


def test_wrong_settings_are_refused() -> None:
    base = rope.Base(1e4, 64, 2048)
    with pytest.raises(RopeError, match="unknown scaling 'abf': one of none, pi, ntk, dynamic"):
        rope.parameters(base, "abf", 4.0)
    with pytest.raises(RopeError, match="long_factor has 3 numbers and the model rotates 32 pairs"):
        rope.parameters(base, "longrope", 4.0, long_factor=[1.0] * 3)
    with pytest.raises(RopeError, match="unknown rope_type 'axial'"):
        rope.inverse_frequencies({"rope_type": "axial", "rope_theta": 1.0, "factor": 2.0}, 64)


@pytest.mark.parametrize(
    ("kind", "held", "named", "expected"),
    [
        ("yarn", 8192, 10**30, 8192),
        ("dynamic", 2048, 8192, 8192),
        ("dynamic", 2048, 512, 2048),
        ("dynamic", 2048, 10**30, 2048),
        ("default", 2048, 8192, 2048),
    ],
)
def test_window_counts_scaling_also_where_the_config_does_not(
    kind: str, held: int, named: int, expected: int
) -> None:
    config = SimpleNamespace(max_position_embeddings=held, rope_parameters={"rope_type": kind})
    assert rope.window_of(config, SimpleNamespace(model_max_length=named)) == expected
