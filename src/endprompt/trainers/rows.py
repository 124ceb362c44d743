"""Rows of a recipe for another trainer, with the scaled base beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from endprompt import recipe as recipes
from endprompt import rope
from endprompt.cues import CueWriter
from endprompt.data import holdout, row_files
from endprompt.data.encoder import Encoder
from endprompt.data.rows import RowSource
from endprompt.errors import OutputError, RecipeError
from endprompt.io import claims, digests
from endprompt.models import checkpoint as models
from endprompt.recipe import Recipe
from endprompt.record import RowFiles
from endprompt.trainers import settings

log = logging.getLogger(__name__)


def write_rows(
    recipe: str,
    *,
    model: str,
    data: str | Path,
    target: int,
    out: Path,
    count: int | None = None,
    tokens: int | None = None,
    form: row_files.Format = "arrow",
    scaled_base: Path | None = None,
    trainer: str | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RowFiles:
    """Write the rows that `endprompt train` would train on, for any trainer to read.

    recipe        a recipe's name or YAML file, its settings changed by `overrides`
    data          folder or URL of `endprompt prepare`
    count         rows; or
    tokens        physical tokens in all, rounded down to whole rows
    scaled_base   folder for the base with its RoPE scaled to the target, weights by link
    trainer       one of `settings.TRAINERS`: its configuration is written beside the rows

    The same seed gives the same rows. Raises RecipeError for amounts and recipes that rows of
    this kind can't hold, OutputError for a folder of other rows.
    """
    if (count is None) == (tokens is None):
        raise RecipeError("give either a count of rows or a number of tokens")
    if form not in row_files.FORMATS:
        raise RecipeError(f"no format {form!r}: {', '.join(row_files.FORMATS)}")
    if trainer is not None:
        settings.require_known(trainer)
    overrides = overrides or {}
    chosen = recipes.load(recipe).replace(overrides)
    family = models.family_of(model)
    if not recipes.chooses_scaling(recipe, overrides):
        chosen = chosen.replace({"rope.scaling": family.suited(chosen.rope.scaling)})
    chosen = chosen.resolve(window=family.base.window, target=target, gpu=False, base=family.base)
    if chosen.rows.document_mask:
        raise RecipeError(
            "rows.document_mask needs a mask of its own for each row: set it to false"
        )
    if chosen.rows.gaps == "filled":
        raise RecipeError(
            "rows.gaps filled needs keys of another model in every layer, which rows in a file "
            "can't hold: set it to empty"
        )
    row_tokens = chosen.amounts.row_tokens
    number = count if count is not None else (tokens or 0) // row_tokens
    if number < 1:
        raise RecipeError(
            f"{count if tokens is None else tokens} is less than one row of {row_tokens} tokens"
        )
    tokenizer = models.load_tokenizer(model)
    config = models.scaled_config(model, chosen, target)
    if trainer is not None:
        settings.require_scaling(trainer, rope.of_global_layers(config)["rope_type"])
    documents, fingerprint = holdout.training_documents(data, tokenizer)
    source = RowSource(
        documents, chosen.rows, CueWriter(tokenizer),
        target=target, seed=chosen.training.seed, count=number,
    )  # fmt: skip
    for index in range(min(8, number)):  # what cannot be made is said before anything is written
        source.row(index)
    facts = {
        "recipe": chosen.model_dump(mode="json"),
        "recipe_hash": chosen.hash(),
        "base": model,
        "base_digests": digests.of_model(model),
        "tokenizer": Encoder(tokenizer).digest,
        "rope_parameters": dict(rope.of_global_layers(config)),
        "target": target,
        "row_tokens": row_tokens,
        "text": fingerprint,
    }
    _warn(chosen, source)

    def link_base() -> None:
        if scaled_base is not None:
            _link_base(model, config, tokenizer, scaled_base, target, reads=[data, out])

    done = row_files.write(
        source, out, facts=facts, card=_card(facts, number, form), form=form,
        reads=(model, str(data)), claimed=link_base, progress=progress,
    )  # fmt: skip
    if trainer is not None:
        texts = settings.made_for(trainer, rows=out, base=scaled_base, record=done, form=form)
        for name, text in texts.items():
            done = row_files.add_configuration(out, name, text)
    return done


def _warn(recipe: Recipe, source: RowSource) -> None:
    """Say what of the recipe another trainer leaves out."""
    if row_files.weighted(source):
        log.warning(
            "loss weights are not all 0 or 1, and %s can't use the column loss_weights: every "
            "label weighs the same there",
            ", ".join(row_files.WITHOUT_WEIGHTS),
        )
    if recipe.training.prefix_loss != "text":
        log.warning("training.prefix_loss needs the teacher of endprompt train: elsewhere "
                    "the prefix is trained on its text")  # fmt: skip
    if recipe.training.label_weights != "rows":
        log.warning("training.label_weights gain is that of endprompt train: elsewhere tokens "
                    "weigh what the rows say")  # fmt: skip
    if recipe.training.attention == "shifted":
        log.warning("training.attention shifted is that of endprompt train: elsewhere it is full")


def _link_base(
    model: str, config: Any, tokenizer: Any, folder: Path, target: int, *, reads: list[Any]
) -> None:
    wanted = dict(rope.of_global_layers(config))
    if folder.is_dir() and claims.settings_of(folder) is not None:
        there = dict(rope.of_global_layers(models.load_config(str(folder))))
        if there == wanted:
            return
        raise OutputError(f"{folder} holds a base with another scaling: choose another folder")
    with claims.product(folder, "rows", reads=[model, *reads]) as partial:
        models.link(model, config, tokenizer, partial, target)


def _card(facts: dict[str, Any], number: int, form: str) -> str:
    """README.md of the data set."""
    pattern = f"train-*.{form}"
    return f"""---
configs:
- config_name: default
  data_files: {pattern}
tags: [endprompt, long-context]
---
# Rows that train a window of {facts["target"]} tokens

{number} rows of {facts["row_tokens"]} tokens, made by `endprompt rows`.

| | |
| --- | --- |
| recipe | `{facts["recipe_hash"]}` |
| base | {facts["base"]} |
| tokenizer | `{facts["tokenizer"]}` |
| text | `{facts["text"]}` |
| target | {facts["target"]} tokens |
| RoPE of the base to train | `{facts["rope_parameters"]}` |

Columns: `input_ids`, `position_ids`, `labels` (-100: not trained), `attention_mask` of ones.
Train one row an example, never packed, with `position_ids` and `attention_mask` handed to the
model, on the base with the scaling above. `endprompt.guard` checks the first batch of any trainer.
"""
