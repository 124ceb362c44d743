"""What the engine reads in chunks, asks and takes back is what one call of the model gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from endprompt.eval.engine import Engine
from tiny_families import tiny_known_model

FAMILIES = ("Gemma 3 1B", "Olmo 3", "gpt-oss", "Qwen 2 with sliding layers", "Gemma 2", "SmolLM3")
IDS = np.random.default_rng(0).integers(3, 97, 120)


def whole(model: Any, ids: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of every token but the first, from one call."""
    with torch.no_grad():
        row = torch.tensor(ids)[None]
        logits_TV = model(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV.double(), -1)
    return -logprobs_TV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_questions_and_one_call_agree_past_the_local_span(name: str) -> None:
    model = tiny_known_model(name)
    engine = Engine(model, SimpleNamespace(model_max_length=512), chunk=16)
    context = engine.context()
    scores = context.extend(IDS[:100], scored=60)
    np.testing.assert_allclose(scores.nll_T, whole(model, IDS[:100])[-60:], rtol=1e-4)
    for question in (IDS[100:110], IDS[105:112]):
        asked = context.ask(question[:4], question[4:])
        expected = whole(model, np.concatenate([IDS[:100], question]))[-len(question) + 4 :]
        np.testing.assert_allclose(asked.nll_T, expected, rtol=1e-4)
    on = context.extend(IDS[100:], scored=20)
    np.testing.assert_allclose(on.nll_T, whole(model, IDS)[-20:], rtol=1e-4)
