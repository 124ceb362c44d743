"""`endprompt eval`: makes the data of evaluations, runs them, scores predictions.

Each evaluation lives in a module `eval_*.py` beside this one, which adds its commands here.
"""

from __future__ import annotations

from importlib import import_module

import typer

from endprompt.cli.groups import in_sections

EVALUATIONS: tuple[str, ...] = (
    "eval_window",
    "eval_untaught",
    "eval_ruler",
    "eval_longbench",
    "eval_perplexity",
    "eval_needle",
    "eval_run",
)
"""Modules of this package; each has `register(data_app, score_app, eval_app)`."""


SECTIONS = {
    "Evaluating": ("run", "window", "untaught", "needle", "perplexity"),
    "Comparing": ("compare",),
    "With an engine of your own": ("data", "score", "tasks-path"),
}
"""Commands of `endprompt eval` by heading."""


def register(app: typer.Typer) -> None:
    """Add the verb `eval` with its groups `data` and `score`."""
    eval_app = typer.Typer(
        cls=in_sections(SECTIONS), no_args_is_help=True, help="Evaluate a model at any length."
    )
    data_app = typer.Typer(no_args_is_help=True, help="Write a benchmark's prompts to a file.")
    score_app = typer.Typer(
        no_args_is_help=True, help="Score a file of predictions from any engine."
    )
    for name in EVALUATIONS:
        import_module(f"endprompt.cli.{name}").register(data_app, score_app, eval_app)
    eval_app.add_typer(data_app, name="data")
    eval_app.add_typer(score_app, name="score")
    app.add_typer(eval_app, name="eval")
