"""`endprompt eval data ruler` and `endprompt eval score ruler`."""

from __future__ import annotations

import typer


def register(data_app: typer.Typer, score_app: typer.Typer, eval_app: typer.Typer) -> None:
    """Add RULER's commands (none of them stands directly under `eval`)."""
    del eval_app
    data_app.command("ruler")(data)
    score_app.command("ruler")(score)


def data() -> None:
    """Write RULER's prompts, equal to those of NVIDIA's generator."""


def score() -> None:
    """Score RULER predictions as NVIDIA's scorer does."""
