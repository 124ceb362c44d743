"""`endprompt rows`: training rows for other people's trainers."""

from __future__ import annotations

from pathlib import Path

import typer

from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `rows`."""

    @app.command()
    def rows(
        recipe: str = typer.Argument(
            ..., help="A method's name (`endprompt methods` lists them) or a YAML file."
        ),
        model: str = typer.Option(..., "--model", help="Checkpoint folder or hub name."),
        data: str = typer.Option(..., "--data", help="Folder or URL of `endprompt prepare`."),
        to: str = typer.Option(..., "--to", metavar="TOKENS", help="Target window, as 64k."),
        out: Path = typer.Option(..., "--out", help="Folder of the rows; resumes one in it."),
        count: int | None = typer.Option(None, "--count", min=1, help="Number of rows."),
        tokens: str | None = typer.Option(
            None, "--tokens", help="Or physical tokens in all, as 200m."
        ),
        form: str = typer.Option("arrow", "--format", help="arrow, parquet or jsonl."),
        scaled_base: Path | None = typer.Option(
            None, "--scaled-base", help="Folder for the base with its RoPE scaled; weights by link."
        ),
        trainer: str | None = typer.Option(
            None,
            "--for",
            help="Its settings: trl, axolotl, llamafactory, ms-swift, unsloth, torchtitan.",
        ),
        push: str | None = typer.Option(None, "--push", help="Data set on the hub to upload to."),
        settings: list[str] = typer.Option(
            [], "--set", metavar="KEY=VALUE", help="Override a setting of the recipe."
        ),
    ) -> None:
        """Write training rows for TRL, Axolotl and others.

        With --scaled-base the base is written beside them, scaled to the target. The same seed
        gives the same rows. A killed command resumes when it is given again.
        `endprompt.guard` and `endprompt.GuardCallback` check the first batch in the trainer.

        Example:

            endprompt rows fact-anchors --model my-llama --data tokens --to 64k --count 1000 \\
                --out rows --scaled-base my-llama-64k --for trl
        """
        from typing import Any, cast

        from endprompt import recipe as recipes
        from endprompt import units
        from endprompt.io import hub
        from endprompt.io.silence import silence_libraries

        target = units.tokens(to)
        silence_libraries()
        from endprompt.trainers.rows import write_rows

        if push is not None:
            hub.check(push)
        done = write_rows(
            recipe,
            model=model,
            data=data,
            target=target,
            out=out,
            count=count,
            tokens=None if tokens is None else units.amount(tokens),
            form=cast("Any", form),
            scaled_base=scaled_base,
            trainer=trainer,
            overrides=recipes.parse_overrides(settings),
        )
        echo(f"{out}: {done.rows} rows of {done.row_tokens} tokens for {done.target} positions")
        if push is not None:
            echo(hub.push(out, push, kind="dataset", message="Add rows"))
