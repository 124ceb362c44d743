"""`endprompt tune-scaling`: the RoPE scaling that suits a model, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from endprompt.cli import defaults, eval_screen
from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `tune-scaling`."""

    @app.command("tune-scaling")
    def tune_scaling(
        model: str | None = defaults.MODEL,
        to: str = typer.Option("16k", "--to", metavar="TOKENS", help="Target window, as 64k."),
        text: list[str] = defaults.TEXT,
        scaling: list[str] = typer.Option(
            [],
            "--scaling",
            help="Rule to search; may be repeated. Default: yarn, ntk (a raised theta) and "
            "longrope, as far as the model can have them; a scaled base keeps its own.",
        ),
        rows: int = typer.Option(
            8, "--rows", min=4, help="Short rows of the probe, eight questions each."
        ),
        verify: int = typer.Option(
            5,
            "--verify",
            min=1,
            help="Candidates to read at the target: the best three, the plain factor, the worst, "
            "the middle one, then further ones from the top.",
        ),
        needles: int = typer.Option(
            16, "--needles", min=4, help="Needles to ask for at the target when verifying."
        ),
        seed: int = typer.Option(0, "--seed", min=0, help="Decides everything drawn."),
        dtype: str = typer.Option("auto", "--dtype", help=eval_screen.DTYPE),
        out: Path = typer.Option(
            Path("runs/tune-scaling"), "--out", "-o", help="Folder of the run; resumes one in it."
        ),
    ) -> None:
        """Search the RoPE scaling of a model, without training.

        Rules, factors (rope.headroom) and settings are compared by the answer loss of short rows
        whose gaps are filled with keys of other text, so that an answer has to be found among as
        many keys as the target has. Some candidates are then read at the true length. Printed
        are both tables, Spearman's rank correlation between them, and the settings of the best;
        tune_scaling.json has every value. A killed run resumes when given again; with a larger
        --verify it reads more candidates.

        This ranks models that are not trained yet. After training another scaling can be ahead:
        train the best and the plain factor, and compare.

        Examples:

            endprompt tune-scaling my-llama --to 64k --out runs/scaling

            endprompt tune-scaling my-llama --to 64k --scaling yarn --rows 16 --verify 8

            endprompt extend my-llama --to 64k --set rope.scaling=yarn --set rope.headroom=1.5
        """
        from endprompt import units
        from endprompt.cli.screen import Screen
        from endprompt.io.silence import silence_libraries

        target = units.tokens(to)
        silence_libraries()
        from endprompt.tuning.run import Request, tune

        request = Request(
            model=model,
            target=target,
            out=out,
            text=tuple(text),
            scalings=tuple(scaling),
            rows=rows,
            verify=verify,
            needles=needles,
            seed=seed,
            dtype=dtype,
        )
        with Screen() as screen:
            result = tune(request, say=screen.say, watch=screen.part)
        show(result)
        echo(f"record  {out / 'tune_scaling.json'}")


def show(result: dict[str, Any]) -> None:
    """Both tables in 80 columns, how well they agree, and the settings of the best."""
    from endprompt.cli.console import Console

    console = Console()
    _table(
        console,
        f"Probe: {result['rows']} short rows, answer loss (nats per token), farthest quarter first",
        ["scaling", "by quarter", "mean"],
        [
            [entry["name"], _joined(entry["answer_loss_by_quarter"]), f"{entry['answer_loss']:.3f}"]
            for entry in result["candidates"]
        ],
    )
    verified = result["verified"]
    _table(
        console,
        f"At {result['target']:,} tokens: answer loss of {result['needles']} needles; loss of text "
        f"at {result['window']:,}",
        ["scaling", "by quarter", "mean", "digits", "inside"],
        [
            [
                entry["name"],
                _joined(entry["answer_loss_by_quarter"]),
                f"{entry['answer_loss']:.3f}",
                f"{entry['digits_right']:.2f}",
                f"{entry['loss_at_window']:.3f}",
            ]
            for entry in verified
        ],
    )
    rho = result["spearman"]
    said = "-" if rho is None else f"{rho:.2f}"
    echo(
        "",
        f"Spearman's rank correlation of probe and truth: {said} over {len(verified)} verified,",
        "chosen from both ends: few values, and the extremes help it",
        f"Best untrained, which need not be the best after training (plain: {result['plain']}):",
        "  " + " ".join(f"--set {entry}" for entry in result["set"]),
    )


def _table(console: Any, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from endprompt.cli.console import Table

    console.print()
    console.print(title, markup=False, style="bold", soft_wrap=True)
    shown = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def _joined(quarters: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.2f}" for value in quarters)
