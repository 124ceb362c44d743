"""The search of LongRoPE factors: it finds what it should and leaves the model alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_families import Text

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cues import CueWriter
from endprompt.data.rows import RowSource, collate
from endprompt.errors import RopeError
from endprompt.train import longrope
from tiny_families import tiny_config, tiny_model

TARGET = 512
BASE = rope.read_base(tiny_config())


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    rows = recipes.load("pose").rows.model_copy(update={"tokens": 128})
    source = RowSource(Text(2000), rows, CueWriter(None), target=TARGET, seed=0, count=count)
    return [
        collate([{**source[n], "input_ids": source[n]["input_ids"] % 97}]) for n in range(count)
    ]


def test_search_keeps_the_lowest_loss_and_gives_the_model_back() -> None:
    model = tiny_model()
    before = {name: each.clone() for name, each in model.named_buffers()}
    found = longrope.search(model, BASE, 4.0, batches())
    assert sorted(found.losses) == list(range(8))
    assert found.losses[found.critical] == min(found.losses.values())
    assert len(set(found.losses.values())) > 1
    assert found.long_factor == rope.stretch(BASE, 4.0, found.critical)
    assert model.training
    for name, each in model.named_buffers():
        assert torch.equal(each, before[name])


def test_loss_is_that_of_the_model_scaled_with_the_factors_found() -> None:
    found = longrope.search(tiny_model(), BASE, 4.0, batches(), tries=3)
    parameters = rope.parameters(BASE, "longrope", 4.0, long_factor=found.long_factor)
    scaled = tiny_model(rope_parameters=parameters, max_position_embeddings=TARGET).eval()
    reaching = [b for b in batches() if int(b["position_ids"].max()) >= BASE.window]
    on_these = longrope.search(tiny_model(), BASE, 4.0, reaching, tries=3)
    losses = [longrope._mean_loss(scaled, reaching)]
    assert losses[0] == pytest.approx(on_these.losses[found.critical], rel=1e-4)


def test_ends_of_the_search_are_interpolation_and_ntk() -> None:
    np.testing.assert_allclose(rope.stretch(BASE, 4.0, 0), 4.0)
    plain = rope.inverse_frequencies(rope.parameters(BASE, "none", 1.0), BASE.rotary_size)[0]
    ntk = rope.inverse_frequencies(rope.parameters(BASE, "ntk", 4.0), BASE.rotary_size)[0]
    pairs = BASE.rotary_size // 2
    np.testing.assert_allclose(plain / rope.stretch(BASE, 4.0, pairs - 1), ntk)


def test_a_scaled_model_is_refused() -> None:
    model = tiny_model(rope_parameters=rope.parameters(BASE, "pi", 4.0))
    with pytest.raises(RopeError, match="searched on an unscaled model"):
        longrope.search(model, BASE, 4.0, batches(1))
