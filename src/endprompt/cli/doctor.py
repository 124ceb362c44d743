"""`endprompt doctor`: the position check, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from endprompt.cli.terminal import echo, write


def register(app: typer.Typer) -> None:
    """Add the verb `doctor`."""

    @app.command()
    def doctor(
        model: str | None = typer.Argument(
            None, help="Checkpoint folder, GGUF file or hub name. Default: the embedded model."
        ),
        to: str | None = typer.Option(
            None, "--to", metavar="TOKENS", help="Target window, as 64k."
        ),
        method: str = typer.Option("endprompt", "--method", help="Whose RoPE scaling is used."),
        scaling: str | None = typer.Option(
            None, "--scaling", help="pi, ntk, yarn, ... in place of the method's own."
        ),
        settings: list[str] = typer.Option(
            [], "--set", metavar="KEY=VALUE", help="Override a setting of the recipe."
        ),
        out: Path | None = typer.Option(None, "--json", help="Write the checks here."),
        calibrate: bool = typer.Option(
            False, "--calibrate", help="Also time a short step and a short prefill."
        ),
        known: bool = typer.Option(
            False, "--families", help="Print what is done to every known family, as Markdown."
        ),
        progress: Path | None = typer.Option(None, "--progress", hidden=True),
    ) -> None:
        """The position check: does training see the far distances?

        Begins with what each kind of layer sees, how its RoPE is scaled, and which engines can't
        express that. Then the checks.

        For eager and sdpa attention, with and without activation checkpointing: the jump exists,
        the last position is TARGET-1, the terminal sees the prefix and sends it a gradient, RoPE
        is scaled as written, theta is kept, cos and sin reach the target. Exit code 1 when any
        of these fails: a run would look well and train no long distance.

        Example:

            endprompt doctor my-llama --to 64k
        """
        from endprompt import recipe as recipes
        from endprompt import units
        from endprompt.errors import RecipeError
        from endprompt.io import result_files
        from endprompt.io.progress import tell
        from endprompt.io.silence import silence_libraries

        if known:
            silence_libraries()
            from endprompt.export import families as listing

            write(listing.markdown())
            return
        if to is None:
            raise RecipeError("--to is missing: give the target window, as in --to 64k")
        result_files.require_replaceable(out, "doctor", force=True)
        target = units.tokens(to)
        overrides = recipes.parse_overrides(settings)
        if scaling:
            overrides["rope.scaling"] = scaling
        recipe = recipes.load(method).replace(overrides)
        tell(progress, 0, 3)
        silence_libraries()
        from endprompt.models import checkpoint as models
        from endprompt.models import embedded
        from endprompt.train import calibration, position_check

        path = embedded.resolve(model)
        family = models.family_of(path)
        if not recipes.chooses_scaling(method, overrides):
            recipe = recipe.replace({"rope.scaling": family.suited(recipe.rope.scaling)})
        config = models.scaled_config(path, recipe, target)
        wanted = models.scaled_parameters(family, recipe, target)
        _show_layers(family, wanted, target, config)
        network = models.load(path, config)
        tell(progress, 1, 3)
        checks = position_check.check_positions(network, family, target, wanted=wanted)
        tell(progress, 2, 3)
        result = {
            "model": path,
            "target": target,
            "rope_parameters": network.config.rope_parameters,
            "window": family.base.window,
            "checks": [check.as_dict() for check in checks],
            "calibration": calibration.measure(network) if calibrate else None,
        }
        for check in checks:
            mark = "ok  " if check.passed else "FAIL"
            echo(f"{mark}  {check.name:<36} {check.backend:<20} {check.detail}")
        position_check.require(checks)
        if out is not None:
            result_files.write(out, "doctor", result)


def _show_layers(family: Any, wanted: dict[str, Any], target: int, config: Any) -> None:
    """The table that comes before the checks."""
    from endprompt.export import engines
    from endprompt.export import families as listing

    rows = [listing.HEADER, *listing.layer_rows(family, wanted, target)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    echo(f"{family.model_type}: window {family.base.window:,}, to {target:,} tokens")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo("  ".join(cells).rstrip())
    if listing.balance_words(config):
        echo(f"experts: {listing.balance_words(config)}")
    for engine, why in listing.unable(engines.read_of(config)).items():
        echo(f"{engine} can't serve it: {why}")
    echo("")
