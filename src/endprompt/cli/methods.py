"""`endprompt methods`: every recipe in one line."""

from __future__ import annotations

import typer

from endprompt.cli.terminal import write


def register(app: typer.Typer) -> None:
    """Add the verb `methods`."""

    @app.command()
    def methods(
        names: list[str] | None = typer.Argument(
            None,
            metavar="[NAME]...",
            help="Recipes, mixtures or .yaml files. Default: all shipped.",
        ),
        to: str = typer.Option("64k", "--to", metavar="TOKENS", help="Target window."),
        window: str = typer.Option("8k", "--window", metavar="TOKENS", help="Window of the base."),
        row_tokens: str | None = typer.Option(
            None,
            "--row-tokens",
            metavar="TOKENS",
            help="Tokens of a short row. Default: the window.",
        ),
        rows: int = typer.Option(1000, "--rows", min=1, help="Rows of each recipe to look at."),
        model: str | None = typer.Option(
            None,
            "--model",
            help="Count costs and take the window of this checkpoint. "
            "Default: the sizes of Llama-3-8B.",
        ),
        markdown: bool = typer.Option(
            False, "--markdown", help="Print docs/methods.md: distances as intervals, sources."
        ),
    ) -> None:
        """List recipes: when to choose each, its distances, a step's cost.

        Share: part of the distances 1 .. TARGET-1 that occur in ROWS rows, counted from the
        sampler that trains. Far: part of all query-key pairs with a distance beyond the window.
        Cost: FLOPs of a step at equal tokens, as a multiple of `short`.

        Examples:

            endprompt methods --to 32k

            endprompt methods pose cream 0.8pose+0.2cream --window 2k --to 16k
        """
        from rich.progress import track

        from endprompt import recipe as recipes
        from endprompt import units
        from endprompt.analysis import methods as listing
        from endprompt.cli.console import Console, Table
        from endprompt.cost import flops

        decoder, base_window, sizes = flops.LLAMA_3_8B, units.tokens(window), "Llama-3-8B"
        if model is not None:
            from endprompt.models import embedded
            from endprompt.models.checkpoint import family_of, load_config

            path = embedded.resolve(model)
            config, sizes = load_config(path), model
            decoder, base_window = flops.read(config), family_of(path, config).base.window
        target, chosen = units.tokens(to), names or recipes.names()
        short = units.tokens(row_tokens) if row_tokens else None
        error = Console(stderr=True)
        lines = [
            line
            for name in track(
                chosen,
                "counting distances",
                console=error,
                transient=True,
                disable=not error.is_terminal,
            )
            for line in listing.table(
                [name],
                window=base_window,
                target=target,
                rows=rows,
                row_tokens=short,
                decoder=decoder,
            )
        ]
        if markdown:
            page = listing.markdown(
                lines, window=base_window, target=target, rows=rows, model=sizes
            )
            write(page)
            return
        console = Console()
        if not names:
            first = Table("to begin with", "when to choose it", box=None, pad_edge=False)
            for line in lines[: len(recipes.FIRST)]:
                first.add_row(line.recipe.name, line.recipe.choose)
            console.print(first, "", markup=False)
        table = Table("method", "share", "far", "cost", "what it is", box=None, pad_edge=False)
        for line in lines:
            trained = (f"{line.share:.1%}", f"{line.far:.1%}", f"{line.cost:.2f}")
            figures = trained if line.recipe.trained else ("-", "-", "-")
            table.add_row(line.recipe.name, *figures, line.recipe.summary)
        console.print(table, markup=False)
