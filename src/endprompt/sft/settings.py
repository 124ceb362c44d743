"""All settings of supervised fine-tuning, from a YAML file and from `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from endprompt.recipe import Count, Settings, Weight, read_yaml, validated


class Tuning(Settings):
    """Amount, optimizer, rows. The learning rate is TRL's default."""

    renamed: ClassVar[dict[str, str]] = {"trains": "trainable"}

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the rows; `steps` overrules it."""
    steps: Count | None = None
    rows_per_step: Count = 8
    """Rows whose gradients make one step, over all processes; packed rows, when packing."""
    max_tokens: Count | None = None
    """Rows longer than this are left out; None: the model's window. With packing, of a pack."""
    packing: bool = False
    """Several conversations in one row: positions start again at 0, none sees another."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Weight = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    trainable: Literal["all", "lora", "lora+"] = "all"
    lora_rank: Count = 8
    lora_alpha: Count = 16
    gradient_checkpointing: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    save_steps: Count = 50
    seed: Annotated[int, Field(ge=0)] = 0


def load(path: Path | None, overrides: dict[str, Any]) -> Tuning:
    """Settings of a YAML file, the defaults without one, with `overrides` on top.

    Raises RecipeError for a broken file, an unknown key (with the nearest), a value that can't be.
    """
    values = {} if path is None else read_yaml(path, "recipe")
    return validated(Tuning, {**values, **overrides}, "settings of sft")
