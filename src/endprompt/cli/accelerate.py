"""`endprompt accelerate`: where the shipped configs for many GPUs lie."""

from __future__ import annotations

import typer

from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `accelerate`."""

    @app.command()
    def accelerate(
        name: str = typer.Argument(..., help="fsdp2, fsdp2-cp (cuts rows) or zero3 (DeepSpeed)."),
    ) -> None:
        """Print the path of a shipped Accelerate config for many GPUs.

        Example:

            accelerate launch --config_file "$(endprompt accelerate fsdp2)" --num_processes 8
            -m endprompt train fact-anchors --model my-llama --data tokens --to 64k --out runs/64k
        """
        from endprompt.errors import RecipeError, nearest
        from endprompt.train.launch import SHIPPED

        known = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
        if name not in known:
            raise RecipeError(
                f"unknown config {name!r}{nearest(name, known)}: one of {', '.join(known)}"
            )
        echo(SHIPPED / f"{name}.yaml")
