"""What training did to a run's model: attention before and after, and the terminal's signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endprompt import record
from endprompt.analysis import attention
from endprompt.analysis.terminal_signal import Signal, rows_with_terminals, terminal_signal
from endprompt.cues import CueWriter
from endprompt.data import holdout
from endprompt.data.rows import collate
from endprompt.errors import DataError, TextError
from endprompt.io import records
from endprompt.models import checkpoint as models
from endprompt.models import embedded
from endprompt.recipe import Recipe, build_recorded

NEAR = 64
"""Distances below this are a band of their own."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished run of `endprompt extend`, with the model before and after training.

    curve  steps of the training with their losses
    """

    folder: Path
    recipe: Recipe
    target: int
    before: Path
    after: Path
    curve: list[dict[str, Any]]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a finished run of `endprompt extend`."""
    return (folder / "run.json").is_file() and (folder / "arms").is_dir()


def read(folder: Path, tokens: int) -> TrainedRun:
    """A run's folder, checked: it trained something, and a row of `tokens` can have a jump.

    Raises DataError where not, and when its models are gone.
    """
    run = records.read(folder / "run.json", record.Run).plain()
    recipe = build_recorded(run["recipe"], f"recipe of {folder}")
    before, after = (folder / "arms" / name / "model" for name in ("untrained", recipe.name))
    if not recipe.trained:
        raise DataError(f"{folder} trained nothing: there is no before and after")
    for model in (before, after):
        if not (model / "config.json").is_file():
            raise DataError(f"{model} is not there: the run's folder has to be whole")
    target = int(run["target"])
    if 3 * tokens > 2 * target:
        raise DataError(
            f"--tokens {tokens} leaves no jump inside {target} positions: at most {2 * target // 3}"
        )
    curve = next(arm["curve"] for arm in run["arms"] if arm["name"] == recipe.name)
    return TrainedRun(folder, recipe, target, before, after, curve)


def reaches(
    run: TrainedRun, text: Path | None, tokens: int, sink: int
) -> tuple[attention.Reach, attention.Reach]:
    """Attention by distance on one row, before and after training.

    text  a text file; None: the embedded text
    sink  first tokens that are in no band

    The second half of the row stands at the far end of the target, as in training, so that its
    tokens see the first half across the jump. Raises TextError for too little text.
    """
    half, target = tokens // 2, run.target
    positions = np.concatenate([np.arange(half), np.arange(target - tokens + half, target)])
    edges = [0, NEAR, tokens - half, target - tokens + 1, target]

    def reach(model: str) -> attention.Reach:
        ids = text_ids(model, text, tokens)
        layers = attention.record(models.load(model, models.load_config(model)), ids, positions)
        return attention.reach(layers, positions, edges, skip=sink)

    return reach(str(run.before)), reach(str(run.after))


def signals(run: TrainedRun) -> tuple[Signal, Signal] | None:
    """The terminal's loss and gradient on held-out rows, before and after; None without one."""
    documents, _ = holdout.training_documents(run.folder / "data")
    writer = CueWriter(models.load_tokenizer(str(run.before)))
    rows = rows_with_terminals(run.recipe, documents, writer, run.target)
    if not rows:
        return None

    def signal(model: str) -> Signal:
        return terminal_signal(models.load(model, models.load_config(model)), collate(rows))

    return signal(str(run.before)), signal(str(run.after))


def text_ids(model: str, text: Path | None, tokens: int) -> list[int]:
    """Ids of the first tokens of a text file, or of the embedded text. Raises TextError."""
    file = text or min(embedded.text().glob("*.txt"))
    try:
        written = file.read_text(encoding="utf-8")[: 16 * tokens]
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"cannot read {file} as text: {error}") from None
    ids = models.load_tokenizer(model)(written, add_special_tokens=False)["input_ids"][:tokens]
    if len(ids) < tokens:
        raise TextError(f"{file} has {len(ids)} tokens and --tokens asks for {tokens}")
    return ids
