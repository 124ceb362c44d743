"""What is read out of a model is what the model computed, and the theory's score is its score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from endprompt import rope, theory
from endprompt.analysis import attention
from tiny_families import tiny_model

TARGET = 512
FAMILIES = ("llama", "qwen3", "gpt_neox", "phi")
# A short row with a jump, so that distances inside and beyond the window of 128 are there.
POSITIONS = np.concatenate([np.arange(20), np.arange(TARGET - 6, TARGET)])
IDS = np.random.default_rng(0).integers(3, 97, len(POSITIONS))


def scaled(family: str, scaling: str) -> tuple[Any, rope.Base]:
    model = tiny_model(family)
    base = rope.read_base(model.config)
    config = model.config
    config.rope_parameters = rope.parameters(base, scaling, 4.0)
    config.max_position_embeddings = TARGET
    torch.manual_seed(0)
    return type(model)(config).double().eval(), base


@pytest.mark.parametrize("scaling", ["none", "pi", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_theorys_score_is_the_models_score(family: str, scaling: str) -> None:
    model, base = scaled(family, scaling)
    for layer in attention.record(model, IDS, POSITIONS):
        contents = attention.unrotate(layer, POSITIONS, model.config.rope_parameters, base)
        logits = np.einsum("hqd,hkd->hqk", layer.query_HTD, layer.key_HTD) * layer.scaling
        for head in range(len(logits)):
            for query in (3, 19, 20, 25):
                for key in (0, 3):
                    a, phase = contents.polynomial(head, [query], [key])
                    distance = np.array([POSITIONS[query] - POSITIONS[key]])
                    found = theory.score(a, phase, contents.frequency_J, distance)[0, 0]
                    # Transformers makes cos and sin in float32 whatever the model's precision.
                    assert found == pytest.approx(logits[head, query, key], abs=2e-4, rel=1e-4)


def test_contents_do_not_depend_on_where_the_row_stands() -> None:
    model, base = scaled("llama", "pi")
    first = [
        attention.unrotate(
            attention.record(model, IDS, POSITIONS + shift)[0],
            POSITIONS + shift,
            model.config.rope_parameters,
            base,
        )
        for shift in (0, 64)
    ]
    np.testing.assert_allclose(first[0].query_HTD, first[1].query_HTD, atol=1e-4)


def test_recording_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama", attention="eager")
    ids = torch.tensor(IDS)[None]
    with torch.no_grad():
        before = model(ids).logits
        attention.record(model, IDS)
        assert model.config._attn_implementation == "eager"
        assert model.training
        torch.testing.assert_close(model(ids).logits, before)


def test_mass_by_distance_sums_to_one_and_equals_the_models_attention() -> None:
    model = tiny_model("llama", attention="eager").eval()
    edges = [0, 1, 4, 16, 10**6]
    found = attention.reach(attention.record(model, IDS, POSITIONS), POSITIONS, edges, queries=5)
    np.testing.assert_allclose(found.mass_LHE.sum(axis=-1), 1, atol=1e-6)
    with torch.no_grad():
        weights_by_layer = model(
            torch.tensor(IDS)[None],
            position_ids=torch.tensor(POSITIONS)[None],
            attention_mask=torch.ones(1, len(IDS), dtype=torch.int64),
            use_cache=False,
            output_attentions=True,
        ).attentions
    distance = POSITIONS[-5:, None] - POSITIONS[None]
    far = (distance >= 16) & (distance < 10**6)
    for layer, weights in enumerate(weights_by_layer):
        expected = (weights[0, :, -5:].numpy() * far).sum(axis=(1, 2)) / 5
        np.testing.assert_allclose(found.mass_LHE[layer, :, -1], expected, atol=1e-5)


def test_tokens_left_out_are_in_no_bin() -> None:
    layers = attention.record(tiny_model("llama").eval(), IDS, POSITIONS)
    edges = [0, 1, 10**6]
    whole = attention.reach(layers, POSITIONS, edges).mass_LHE
    left = attention.reach(layers, POSITIONS, edges, skip=2).mass_LHE
    first = attention.reach(layers, POSITIONS, edges, skip=len(IDS)).mass_LHE
    assert (left[..., 1] < whole[..., 1]).all()
    assert (first == 0).all()


def test_far_heads_are_the_ones_with_most_mass_far_away() -> None:
    mass = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [1.0, 0.0]]])
    found = attention.Reach((0, 100, 1000), mass, mass).far_heads(100, count=3)
    assert found == [(0, 1, 0.8), (1, 0, 0.4), (0, 0, 0.1)]


def test_every_head_has_its_tightness_and_no_measure_passes_its_bound() -> None:
    model, base = scaled("llama", "none")
    layers = attention.record(model, IDS, np.arange(len(IDS)))
    contents = [
        attention.unrotate(one, np.arange(len(IDS)), model.config.rope_parameters, base)
        for one in layers
    ]
    rows = attention.tightness(contents, base, target=TARGET, gap=(20, 480), pairs=3)
    assert len(rows) == 2 * 4 * 4
    for row in rows:
        assert 0 < row.tightness <= row.finer <= 1
        assert 0 < row.curvature_tightness <= 1
        assert row.slope <= row.bound
        assert 0 <= row.carried <= 463
