"""Recipes: every shipped one builds, faults are named, equal recipes make equal runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cost import flops
from endprompt.errors import RecipeError
from endprompt.recipe import Kind, Recipe
from tiny_checkpoint import RECALL_POSE

DESIGN = {
    "none", "pi", "short", "short-recall", "endprompt", "endprompt-random", "endprompt-split",
    "endprompt-pose", "pose", "cream", "longrecipe", "recall-anchors", "distilled-anchors",
    "continuation", "full", "lceg-pi", "lceg-ntk", "lceg-yarn", "longlora", "longlora-full",
}  # fmt: skip
AT_TARGET = {"full", "lceg-pi", "lceg-ntk", "lceg-yarn", "longlora", "longlora-full"}


def test_every_method_of_the_design_is_shipped() -> None:
    assert set(recipes.names()) >= DESIGN


@pytest.mark.parametrize("name", recipes.names())
def test_every_shipped_recipe_builds_and_says_what_it_follows(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.source
    assert recipe.trained == (name not in ("none", "pi"))
    assert (recipe.rows.tokens == "target") == (name in AT_TARGET)
    assert recipe.jumps == (name not in AT_TARGET | {"none", "pi", "short", "short-recall"})
    assert recipes.build(recipe.model_dump(), "again") == recipe


def test_protocols_are_those_of_their_sources() -> None:
    longlora = recipes.load("longlora").training
    assert (longlora.trainable, longlora.lora_rank, longlora.lora_alpha) == ("lora+", 8, 16)
    assert (longlora.attention, longlora.attention_groups) == ("shifted", 4)
    assert recipes.load("longlora-full").training.trainable == "all"
    scalings = {"pi": ("pi", 1.0), "ntk": ("dynamic", 0.5), "yarn": ("yarn", 1.0)}
    for name, scaling in scalings.items():
        lceg = recipes.load(f"lceg-{name}")
        assert (lceg.rope.scaling, lceg.rope.headroom) == scaling
        assert (lceg.training.learning_rate, lceg.training.warmup_steps) == (2e-5, 20)
        assert (lceg.training.schedule, lceg.training.weight_decay) == ("constant_with_warmup", 0.0)


@pytest.mark.parametrize("cue", ["ep1", "ep2", "ep3"])
def test_endprompt_takes_every_cue_and_weight(cue: str) -> None:
    kind = "rows.kinds.0.terminal"
    changed = recipes.load("endprompt").replace({f"{kind}.cue": cue, f"{kind}.weight": 0.1})
    terminal = changed.rows.kinds[0].terminal
    assert terminal is not None
    assert (terminal.cue, terminal.weight, terminal.place) == (cue, 0.1, "end")


def test_endprompt_takes_a_text_and_a_pool() -> None:
    kind, base = "rows.kinds.0.terminal", recipes.load("endprompt")
    base.replace({f"{kind}.cue": "text", f"{kind}.text": "That is all."})
    base.replace({f"{kind}.cue": "pool", f"{kind}.pool": ["Over.", "Out."]})
    with pytest.raises(RecipeError, match="cue 'text' needs terminal"):
        base.replace({f"{kind}.cue": "text"})
    with pytest.raises(RecipeError, match="cue 'pool' needs terminal"):
        base.replace({f"{kind}.cue": "pool"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"rope.scalin": "pi"}, r"unknown key 'rope.scalin' \(did you mean 'scaling'\?\)"),
        ({"roep.scaling": "pi"}, r"unknown key 'roep.scaling' \(did you mean 'rope'\?\)"),
        ({"rows.kinds.0.terminal.plac": "end"}, r"did you mean 'place'"),
        ({"rows.kinds.0.prefix.chunk": 3}, r"did you mean 'chunks'"),
        ({"rows.kinds.0.share": 0.4}, "shares of the kinds of rows add up to 0.4, not 1"),
        ({"rows.kinds.1.share": 0.4}, "'1' is no index below 1"),
        ({"rows.kinds.0.terminal.anchors": 3}, "3 anchors need one of the places 'stratified'"),
        ({"rope.low_freq_factor": 8}, "low_freq_factor has to be below high_freq_factor"),
        ({"rope.beta_slow": 40}, "beta_slow has to be below beta_fast"),
        ({"training.seed.more": 1}, "reaches into a plain value"),
        ({"training.learning_rate": -1}, "training.learning_rate: input should be greater than 0"),
        ({"rows.kinds.0.terminal.recall.verbatim": 0}, "verbatim and facts are both 0"),
        ({"rows.kinds.0.terminal.recall.cue_tokens": [9, 3]}, r"cue_tokens \[9, 3\] is not a"),
        ({"rows.far_weight": -1}, "rows.far_weight: input should be greater than or equal to 0"),
        (
            {"training.label_weights": "gain", "training.prefix_loss": "base"},
            "label_weights is gain, .* training.prefix_loss has to be text",
        ),
        (
            {"training.label_weights": "gain", "rows.document_mask": True},
            "rows.document_mask has to be false",
        ),
    ],
)
def test_faults_are_named_with_their_key(override: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load("endprompt").replace(override)


def test_a_place_in_a_list_is_set_as_a_whole() -> None:
    changed = recipes.load(RECALL_POSE).replace({"rows.kinds.1": {"share": 0.5}})
    assert changed.rows.kinds[1] == Kind(share=0.5)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_of_a_step_divide_among_ranks(ranks: int) -> None:
    recipe = recipes.load("short").replace({"rows.tokens": 512, "training.tokens_per_step": 8192})
    amounts = recipe.resolve(window=2048, target=8192, gpu=False).amounts
    at_once, accumulated = amounts.batches(ranks, 1024)
    assert at_once * accumulated * ranks == 16
    assert at_once == 2
    with pytest.raises(RecipeError, match="16 rows a step do not divide among 3 processes"):
        amounts.batches(3, 1024)


@pytest.mark.parametrize(
    ("asked", "gpu", "fast", "trains_in"),
    [
        ("auto", False, True, "float32"),
        ("fast", False, True, "bfloat16"),
        ("fast", False, False, "float32"),
        ("fast", True, False, "bfloat16"),
        ("float32", True, True, "float32"),
    ],
)
def test_a_cpu_trains_in_bf16_on_request_where_it_is_fast_in_it(
    asked: str, gpu: bool, fast: bool, trains_in: str
) -> None:
    chosen = recipes.load("pose").replace({"training.dtype": asked})
    found = chosen.resolve(window=1024, target=4096, gpu=gpu, fast_in_bf16=fast)
    assert found.training.dtype == trains_in


def test_operations_of_a_row_follow_what_trains() -> None:
    decoder = flops.Decoder(2, 64, 96, 4, 2, 16, 97)
    full, longlora = (
        recipes.load(name).resolve(window=128, target=512, gpu=False)
        for name in ("full", "longlora")
    )
    assert flops.row(full, decoder).total == flops.training(decoder, 512).total
    assert flops.row(full, decoder, checkpointing=True).total > flops.row(full, decoder).total
    assert (
        flops.row(longlora, decoder).total
        == flops.training(decoder, 512, trainable="lora+", kind="shifted").total
    )


def test_a_base_that_teaches_is_counted_and_reads_no_row_past_its_window() -> None:
    decoder = flops.Decoder(2, 64, 96, 4, 2, 16, 97)
    taught = recipes.load("distilled-anchors")
    plain = recipes.load("recall-anchors")
    sizes = {"window": 128, "target": 512, "gpu": False}
    more = (
        flops.row(taught.resolve(**sizes), decoder).total
        - flops.row(plain.resolve(**sizes), decoder).total
    )
    assert more == flops.forward(decoder, 128)
    with pytest.raises(RecipeError, match="rows of 256 tokens are past the window of 128"):
        taught.replace({"rows.tokens": 256}).resolve(**sizes)
    assert taught.plain().training.prefix_loss == "text"
    assert taught.without_jump().training.prefix_loss == "base"


def test_a_terminal_is_added_by_a_dotted_key() -> None:
    changed = recipes.load("pose").replace({"rows.kinds.0.terminal.cue": "ep3"})
    assert changed.rows.kinds[0].terminal is not None


def test_overrides_are_read_as_yaml() -> None:
    found = recipes.parse_overrides(["a.b=3", "c=1e-4", "d=[1, 2]", "e=pi", "f=null", "g=x=y"])
    assert found == {"a.b": 3, "c": 1e-4, "d": [1, 2], "e": "pi", "f": None, "g": "x=y"}
    for wrong in ("novalue", "=3", "a={"):
        with pytest.raises(RecipeError, match="--set"):
            recipes.parse_overrides([wrong])


def test_files_of_the_user_are_read_and_their_faults_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("summary: my own\nrope: {scaling: ntk}\n")
    assert recipes.load(mine).name == "mine"
    for content, message in (
        ("[1, 2]", "holds no settings"),
        ("a: {", "cannot read recipe"),
        ("rwos: {}", r"recipe bad.yaml: unknown key 'rwos' \(did you mean 'rows'\?\)"),
        ("name: Bad Name", "recipe bad.yaml: name: string should match"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(content)
        with pytest.raises(RecipeError, match=message):
            recipes.load(bad)
    with pytest.raises(RecipeError, match="no recipe file"):
        recipes.load(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match=r"unknown method 'poes' \(did you mean 'pose'\?\)"):
        recipes.load("poes")


def test_labels_weighed_by_gain_ask_for_short_contexts_to_be_read() -> None:
    decoder = flops.Decoder(2, 64, 96, 4, 2, 16, 97)
    plain = recipes.load("recall-anchors").replace({"rows.far_weight": 0.15})
    weighed = plain.replace({"training.label_weights": "gain"})
    one, other = (
        flops.row(recipe.resolve(window=128, target=512, gpu=False), decoder).total
        for recipe in (plain, weighed)
    )
    head = 2 * decoder.head_weights
    # three pieces of 63 tokens, without logits; then two times those of the row's labels
    assert other - one == 3 * (flops.forward(decoder, 63) - head * 63) + 2 * head * 128
    assert weighed.plain().training.label_weights == "rows"
    assert weighed.without_jump().training.label_weights == "gain"
    assert weighed.without_jump().rows.far_weight == 0


def test_hash_changes_with_any_setting_and_only_then() -> None:
    one, two = recipes.load("endprompt"), recipes.load("endprompt")
    assert one.hash() == two.hash()
    assert one.replace({"rows.kinds.0.terminal.weight": 0.5}).hash() != one.hash()


def test_controls_differ_in_what_they_control_for() -> None:
    recall = recipes.load(RECALL_POSE)
    assert recall.plain().rows.kinds == (Kind(),)
    assert recall.plain().rope == recall.rope
    still = recall.without_jump()
    assert not still.jumps
    assert [k.share for k in still.rows.kinds] == [k.share for k in recall.rows.kinds]
    assert [k.terminal and k.terminal.recall for k in still.rows.kinds] == [
        k.terminal and k.terminal.recall for k in recall.rows.kinds
    ]
    assert not recall.untrained().trained


@given(
    st.sampled_from([n for n in recipes.names() if recipes.load(n).trained]),
    st.sampled_from([2048, 8192]),
    st.sampled_from([4, 8, 16]),
    st.booleans(),
)
def test_every_arm_takes_the_same_tokens(name: str, window: int, times: int, gpu: bool) -> None:
    """Rows of the target are fewer by as much as they are longer."""
    target = window * times
    resolved = recipes.load(name).resolve(window=window, target=target, gpu=gpu)
    short = recipes.load("short").resolve(window=window, target=target, gpu=gpu)
    step = max(resolved.amounts.row_tokens, short.amounts.row_tokens)
    assert abs(resolved.amounts.tokens - short.amounts.tokens) <= step * 64
    if gpu:
        assert resolved.training.tokens_per_step == short.training.tokens_per_step
        assert resolved.amounts.tokens == short.amounts.tokens
    expected = target if name in AT_TARGET else window if gpu else min(window, 1024)
    assert resolved.amounts.row_tokens == expected
    assert resolved.resolve(window=window, target=target, gpu=gpu) == resolved


def test_a_step_that_is_no_whole_number_of_rows_is_refused() -> None:
    recipe = recipes.load("short").replace({"rows.tokens": 100, "training.tokens_per_step": 250})
    with pytest.raises(RecipeError, match="tokens_per_step 250 is no multiple of rows of 100"):
        recipe.resolve(window=128, target=512, gpu=False)


def test_mixtures_take_the_rows_of_each_and_the_training_of_the_first() -> None:
    mixed = recipes.load("0.75pose+0.25recall-anchors")
    assert [kind.share for kind in mixed.rows.kinds] == [0.75, 0.25]
    assert mixed.rope == recipes.load("pose").rope
    assert mixed.rows.kinds[0].prefix.layout == "pose"
    equal: Recipe = recipes.load("pose+continuation+short")
    assert [kind.share for kind in equal.rows.kinds] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pose+full", "'full' has no rows of the length of 'pose'"),
        ("pose+none", "'none' has no rows"),
        ("0.8pose+0.3cream", "add up to 1.1, not 1"),
        ("pose+crea", r"unknown method 'crea' \(did you mean 'cream'\?\)"),
        ("pose+2*cream", r"write pose\+cream or 0.8pose\+0.2cream"),
    ],
)
def test_mixtures_that_cannot_be_made_are_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load(name)


@pytest.mark.parametrize(
    ("earlier", "now", "value"),
    [
        ("rope.relative_factor", "rope.headroom", 1.5),
        ("rows.isolate", "rows.document_mask", True),
        ("rows.kinds.0.terminal.recall.quotes", "rows.kinds.0.terminal.recall.verbatim", 2),
        ("training.trains", "training.trainable", "lora"),
    ],
)
def test_a_renamed_key_is_read_with_a_warning(earlier: str, now: str, value: object) -> None:
    recipe = recipes.load("recall-anchors")
    with pytest.warns(FutureWarning, match=now.rpartition(".")[2]):
        assert recipe.replace({earlier: value}) == recipe.replace({now: value})


def test_the_recipe_of_an_earlier_record_is_read_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recipes.build_recorded({"name": "old", "training": {"trains": "lora"}}, "a record")
    assert found.training.trainable == "lora"


def test_digests_know_neither_new_names_of_keys_nor_words() -> None:
    recipe = recipes.load("longlora")
    assert recipe.digested()["training"]["trains"] == "lora+"
    assert recipe.digested()["rows"]["isolate"] is False
    assert recipe.model_copy(update={"summary": "said in other words"}).hash() == recipe.hash()
    assert recipe.replace({"training.lora_rank": 4}).hash() != recipe.hash()


@pytest.mark.parametrize(
    ("settings", "target", "headroom"),
    [({}, 65536, 1.5), ({}, 16385, 1.5), ({}, 16384, 1.0), ({"rope.scaling": "pi"}, 65536, 1.0),
     ({"rope.headroom": 1}, 65536, 1.0), ({"rope.headroom": 3}, 16384, 3.0),
     ({"rope.factor": 12}, 65536, 1.0)],
)  # fmt: skip
def test_headroom_is_that_of_the_scaling_unless_the_recipe_names_one(
    settings: dict[str, Any], target: int, headroom: float
) -> None:
    recipe = recipes.load("recall-anchors").replace(settings)
    resolved = recipe.resolve(window=8192, target=target, gpu=False)
    assert resolved.rope.headroom == headroom
    assert resolved.resolve(window=8192, target=target, gpu=False) == resolved


def test_headroom_that_the_base_has_already_is_not_added_again() -> None:
    base = rope.Base(1e4, 64, 8192, headroom=1.5)
    resolved = recipes.load("recall-anchors").resolve(
        window=8192, target=65536, gpu=False, base=base
    )
    assert resolved.rope.headroom == 1.0
