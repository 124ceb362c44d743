"""A mixture of experts is balanced as its family balances it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from endprompt.train.loss import weighted_loss
from tiny_families import tiny_known_model

FAMILIES = ("Mixtral", "Qwen 3 MoE", "gpt-oss", "OLMoE")


def batch(tokens: int = 24) -> dict[str, Any]:
    ids = torch.randint(3, 97, (2, tokens), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "position_ids": torch.arange(tokens).expand(2, -1),
        "attention_mask": ones,
        "loss_weights": ones.float(),
        "segments": torch.zeros(2, tokens, dtype=torch.uint8),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_transformers_own(name: str, checkpointing: bool) -> None:
    model = tiny_known_model(name, output_router_logits=True, router_aux_loss_coef=0.3).train()
    row = batch()
    theirs = model(
        input_ids=row["input_ids"], attention_mask=row["attention_mask"], labels=row["input_ids"]
    ).loss
    theirs.backward()
    expected = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = weighted_loss(model, row)
    ours = found.weighted / found.weight + found.balance
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[key], rtol=1e-3, atol=1e-6)
    assert found.balance.item() > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_added_where_the_config_does_not_ask_for_it(name: str) -> None:
    assert weighted_loss(tiny_known_model(name), batch()).balance is None
