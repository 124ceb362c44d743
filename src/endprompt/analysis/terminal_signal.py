"""The signal that a terminal sends to the prefix while a model trains."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from endprompt.cues import CueWriter
from endprompt.data.rows import PREFIX, TERMINAL, Documents, RowSource, collate
from endprompt.recipe import Recipe
from endprompt.train.loss import weighted_loss

ROWS = 8
HELD_OUT = 10_000
"""Added to a recipe's seed: rows that training doesn't see."""


def rows_with_terminals(
    recipe: Recipe, documents: Documents, cues: CueWriter, target: int
) -> list[dict[str, Any]]:
    """The first rows of a recipe that have a terminal, from a seed of their own; [] for none."""
    if all(kind.terminal is None for kind in recipe.rows.kinds):
        return []
    seed = recipe.training.seed + HELD_OUT
    source = RowSource(documents, recipe.rows, cues, target=target, seed=seed, count=16 * ROWS)
    drawn = (source[index] for index in range(len(source)))
    return [row for row in drawn if (row["segments"] == TERMINAL).any()][:ROWS]


def terminal_signal(model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Loss of the terminals in nats per trained token, and its gradient on the prefix.

    The gradient is that of the mean terminal loss of a row by the embeddings of its prefix;
    its Euclidean norm is averaged over rows.
    """
    batch = collate(rows)
    batch["loss_weights"] = batch["loss_weights"] * (batch["segments"] == TERMINAL)
    embedded = []

    def keep(_: Any, __: Any, output_BTH: torch.Tensor) -> None:
        embedded.append(output_BTH)

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        losses = weighted_loss(model, batch)
        mean = losses.weighted / losses.weight
        (gradient_BTH,) = torch.autograd.grad(mean * len(rows), embedded)
    finally:
        hook.remove()
    on_prefix_BT = gradient_BTH.norm(dim=-1) * (batch["segments"] == PREFIX)
    return {
        "terminal_loss": mean.item(),
        "gradient_on_prefix": on_prefix_BT.norm(dim=-1).mean().item(),
    }


class Watch(TrainerCallback):
    """Measure the signal before training, ever more seldom during it, and at its end."""

    def __init__(self, rows: list[dict[str, Any]], steps: int) -> None:
        self._rows = rows
        self._steps = {0, steps} | {n for n in (5, 10, 20, 40, 80, 160, 320, 640) if n < steps}
        self.found: list[dict[str, float]] = []

    def _measure(self, step: int, model: Any) -> None:
        if self._rows and step in self._steps:
            self.found.append({"step": step, **terminal_signal(model, self._rows)})

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the first step."""
        self._measure(0, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After a step."""
        self._measure(state.global_step, given["model"])
