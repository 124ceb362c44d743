"""One quantity, whoever asks: the laboratory, `inspect` on a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from endprompt.analysis.terminal_signal import Watch, terminal_signal
from endprompt.data.rows import TERMINAL, collate
from endprompt.train.position_check import probe_row
from tiny_families import tiny_model

TARGET = 512


def rows(count: int = 1) -> list[dict[str, torch.Tensor]]:
    return [probe_row(97, TARGET) for _ in range(count)]


def test_terminal_sends_a_gradient_to_the_prefix() -> None:
    model = tiny_model("llama")
    signal = terminal_signal(model, collate(rows()))
    assert signal.prefix_gradient > 0
    assert signal.terminal_gradient > 0
    assert signal.terminal_loss == pytest.approx(np.log(97), abs=1)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_terminal_that_cannot_see_the_prefix_sends_none() -> None:
    hidden = collate(rows())
    hidden["attention_mask"] = (hidden["segments"] != 0).long()
    assert terminal_signal(tiny_model("llama"), hidden).prefix_gradient == 0


def test_a_terminal_token_right_behind_the_prefix_is_left_out() -> None:
    batch = collate(rows())
    first = int((batch["segments"][0] == TERMINAL).nonzero()[0])
    other = {**batch, "loss_weights": batch["loss_weights"].clone()}
    other["loss_weights"][0, first] = 5.0
    model = tiny_model("llama")
    assert terminal_signal(model, batch) == terminal_signal(model, other)


def test_a_batch_is_the_mean_of_its_rows() -> None:
    model, some = tiny_model("llama"), rows(3)
    alone = [terminal_signal(model, collate([row])) for row in some]
    together = terminal_signal(model, collate(some))
    for name in ("terminal_loss", "prefix_gradient", "terminal_gradient"):
        mean = np.mean([getattr(one, name) for one in alone])
        assert getattr(together, name) == pytest.approx(mean, rel=1e-4)


def test_the_laboratory_watches_the_same_quantity() -> None:
    model, some = tiny_model("llama"), rows(2)
    watch = Watch(some, steps=1)
    watch.on_train_begin(None, None, None, model=model)
    signal = terminal_signal(model, collate(some))
    assert watch.found == [
        {
            "step": 0,
            "terminal_loss": signal.terminal_loss,
            "gradient_on_prefix": signal.prefix_gradient,
        }
    ]
