"""`endprompt lab`: every method against every control, on small models, on a laptop."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the verb `lab`."""

    @app.command()
    def lab(
        ctx: typer.Context,
        arms: str = typer.Option(
            "",
            "--arms",
            help="Methods by name, mixtures (pose+cream) and YAML files of your own, with commas "
            "between; the standard set without it. Untrained bases are always there.",
        ),
        scaling: str = typer.Option(
            "pi,yarn", "--scaling", help="RoPE scalings, with commas: pi, yarn, ntk, llama3."
        ),
        headroom: str = typer.Option(
            "",
            "--headroom",
            help="RoPE factors as multiples of --factor, with commas: 1,1.5,2. Without it each "
            "recipe keeps its own, or has that of the scaling.",
        ),
        seeds: int = typer.Option(5, "--seeds", min=1, help="Number of bases."),
        first_seed: int | None = typer.Option(
            None,
            "--first-seed",
            min=0,
            help="Seed of the first base, 100 without it. Choose recipes on bases below 100, and "
            "report others.",
        ),
        factor: str = typer.Option(
            "8", "--factor", help="How many times the window; several with commas."
        ),
        steps: int | None = typer.Option(
            None,
            "--steps",
            min=1,
            help="Steps of every arm, in place of 1,200 under PI and 300 under the others.",
        ),
        budget: str = typer.Option(
            "", "--budget", help="Begin no further arm after this time: 30m, 2h, 90s."
        ),
        out: Path = typer.Option(Path("runs/lab"), "--out", help="Folder of results; resumes."),
        workers: int = typer.Option(
            0, "--workers", help="Processes at once; 0: one a core. Results don't depend on it."
        ),
        quick: bool = typer.Option(
            False, "--quick", help="One base, four arms, one scaling: minutes, and no interval."
        ),
    ) -> None:
        """Compare recipes on small models, with controls and intervals.

        Bases learn a made-up language inside a window of 128 tokens (kept for the next time),
        every arm extends every base on as many tokens, and all of them answer the same
        questions. OUT/lab.html says in words which differences hold; tables are beside it as
        CSV and Markdown. Given again, the command does what is missing.

        Examples:

            endprompt lab --quick

            endprompt lab --arms short,pose,my-recipe.yaml --scaling pi --seeds 3 --budget 30m
        """
        import os

        from endprompt import units
        from endprompt.cli.console import Console
        from endprompt.errors import RecipeError, nearest
        from endprompt.io import claims
        from endprompt.lab import arms as lab_arms
        from endprompt.lab import page as lab_page
        from endprompt.lab.study import FIRST_SEED, Study, run
        from endprompt.models import embedded

        named = _words(arms) or list(lab_arms.QUICK if quick else lab_arms.STANDARD)
        scalings = _words(scaling)
        if quick:
            scalings, seeds = scalings[:1], 1
        for word in scalings:
            if word not in lab_arms.SCALINGS:
                raise RecipeError(
                    f"unknown scaling {word!r}{nearest(word, lab_arms.SCALINGS)}: "
                    f"one of {', '.join(lab_arms.SCALINGS)}"
                )
        first = FIRST_SEED if first_seed is None else first_seed
        study = Study(
            recipes=tuple(lab_arms.load(name) for name in named),
            scalings=tuple(scalings),
            factors=tuple(_factor(word) for word in _words(factor)),
            headrooms=tuple(_headroom(word) for word in _words(headroom)),
            seeds=tuple(range(first, first + seeds)),
            regime=lab_arms.Regime()
            if steps is None
            else lab_arms.Regime(steps=dict.fromkeys(lab_arms.SCALINGS, steps)),
        )
        ctx.with_resource(claims.output(out, "lab", reads=_words(arms))).claim({})
        console = Console()

        results = run(
            study,
            out,
            embedded.cache_folder() / "lab",
            at_once=workers or os.cpu_count() or 1,
            budget_seconds=units.seconds(budget) if budget else None,
            progress=lambda state: console.print(str(state), markup=False, highlight=False),
        )
        missing = sum(1 for _ in study.arms()) - len(results)
        if results:
            lab_page.write(results, out)
            for group in lab_page.groups(results):
                console.print()
                console.print(f"{group.scaling} by {group.factor}", markup=False)
                for sentence in lab_page.sentences(group):
                    console.print(f"- {sentence}", markup=False, highlight=False)
            console.print()
            console.print(f"{out / 'lab.html'}", markup=False, highlight=False)
        if missing:
            console.print(
                f"{missing} arms are not done: give the same command again to resume", markup=False
            )


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _factor(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 64:
        raise typer.BadParameter(f"{text!r} is no factor from 2 to 64")
    return int(text)


def _headroom(text: str) -> float:
    try:
        headroom = float(text)
    except ValueError:
        headroom = 0.0
    if not 0.5 <= headroom <= 16:
        raise typer.BadParameter(f"{text!r} is no multiple from 0.5 to 16")
    return headroom
