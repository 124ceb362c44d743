"""The signal that a terminal sends to the prefix while a model trains."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Signal:
    """What terminals teach the prefix, a mean over rows."""

    terminal_loss: float
    """Loss of the terminals' trained tokens, nats per token."""
    prefix_gradient: float
    """Norm of that loss's gradient on the embeddings of the prefix."""
    terminal_gradient: float
    """The same on the terminals' own embeddings."""


def terminal_signal(model: Any, batch: dict[str, torch.Tensor]) -> Signal:
    """Loss of a batch's terminals and the gradient that it sends to the prefix.

    batch  rows as `collate` makes them. A terminal token that follows the prefix directly is left
           out: it is predicted from the prefix, whatever attention does across the jump.

    Near 0 for a cue learnt by heart: nothing long-range is trained any more. Gradients of the
    model's weights are left as they were.
    """
    terminal_BT = batch["segments"] == TERMINAL
    after_terminal_BT = terminal_BT & terminal_BT.roll(1, dims=1)
    batch = {**batch, "loss_weights": batch["loss_weights"] * after_terminal_BT}
    embedded = []

    def keep(_: Any, __: Any, output_BTH: torch.Tensor) -> torch.Tensor:
        embedded.append(output_BTH.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        losses = weighted_loss(model, batch)
        mean = losses.weighted / losses.weight
        (gradient_BTH,) = torch.autograd.grad(mean * len(terminal_BT), embedded)
    finally:
        hook.remove()
    norms_BT = gradient_BTH.norm(dim=-1)
    prefix, terminal = (
        (norms_BT * here_BT).norm(dim=-1).mean().item()
        for here_BT in (batch["segments"] == PREFIX, terminal_BT)
    )
    return Signal(mean.item(), prefix, terminal)


class Watch(TrainerCallback):
    """Measure the signal before training, ever more seldom during it, and at its end."""

    def __init__(self, rows: list[dict[str, Any]], steps: int) -> None:
        self._rows = rows
        self._steps = {0, steps} | {n for n in (5, 10, 20, 40, 80, 160, 320, 640) if n < steps}
        self.found: list[dict[str, float]] = []

    def _measure(self, step: int, model: Any) -> None:
        if self._rows and step in self._steps:
            signal = terminal_signal(model, collate(self._rows))
            self.found.append(
                {
                    "step": step,
                    "terminal_loss": signal.terminal_loss,
                    "gradient_on_prefix": signal.prefix_gradient,
                }
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the first step."""
        self._measure(0, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After a step."""
        self._measure(state.global_step, given["model"])
