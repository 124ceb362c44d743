"""LongLoRA through the training run: resumed after a stop it ends with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_families import Text
from transformers import TrainerCallback

from endprompt import recipe as recipes
from endprompt.errors import RecipeError
from endprompt.recipe import Recipe
from endprompt.train.run import train

TARGET = 512


class StopAt(TrainerCallback):
    """Fail at a step, as a killed process would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError("stopped")


def longlora(**changes: Any) -> Recipe:
    settings = {
        "rows.tokens": TARGET,
        "training.tokens": 4 * TARGET,
        "training.tokens_per_step": TARGET,
        "training.learning_rate": 1e-2,
        "training.warmup_steps": 1,
        "training.save_steps": 2,
    }
    recipe = recipes.load("longlora").replace(settings | changes)
    return recipe.resolve(window=128, target=TARGET, gpu=False)


def run(recipe: Recipe, tiny: Path, out: Path, *callbacks: TrainerCallback) -> Any:
    return train(recipe, model=str(tiny), documents=Text(9000), target=TARGET, out=out,
                 callbacks=callbacks)  # fmt: skip


def test_resume_gives_the_same_weights_adapters_norms_and_embeddings(
    tiny: Path, tmp_path: Path
) -> None:
    whole = run(longlora(), tiny, tmp_path / "whole")
    with pytest.raises(Exception, match="stopped"):
        run(longlora(), tiny, tmp_path / "cut", StopAt(3))
    resumed = run(longlora(), tiny, tmp_path / "cut")
    assert resumed.resumed_at == [2]
    assert resumed.flops == whole.flops
    one = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    two = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rows_that_do_not_divide_are_refused_before_the_model_loads(
    tiny: Path, tmp_path: Path
) -> None:
    recipe = longlora(**{"rows.tokens": 100, "training.tokens_per_step": 100})
    with pytest.raises(RecipeError, match="4 groups that halve: 100 tokens do not"):
        run(recipe, tiny, tmp_path / "run")
