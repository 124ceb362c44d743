"""Arguments of the verbs that run without a model and a text of the user's own."""

from __future__ import annotations

from typing import Any

import typer

MODEL: Any = typer.Argument(
    None,
    help="Checkpoint folder, GGUF file or hub name. Default: SmolLM2-135M-Instruct out of a "
    "package.",
)
TEXT: Any = typer.Option(
    [],
    "--text",
    help="File, folder, glob or hub data set; may be repeated. Default: the King James Bible out "
    "of a package.",
)
