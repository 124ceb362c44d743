"""`endprompt study`: the paper's tables and figures, run at a scale that one can afford."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.io import claims
    from endprompt.study.definition import Scale, Study
    from endprompt.study.numbers import Results


def register(app: typer.Typer) -> None:
    """Add the verb `study`."""

    @app.command()
    def study(
        ctx: typer.Context,
        what: list[str] = typer.Argument(
            None,
            metavar="[NAME|FILE]...",
            help="Studies by name, YAML files of your own, or `all`. Without any: the list.",
        ),
        scale: str = typer.Option(
            "lab",
            "--scale",
            help="lab: small models, minutes an arm on a laptop; smollm2: a real model, half an "
            "hour an arm on a CPU; paper: the paper's protocol on 8 GPUs.",
        ),
        out: Path = typer.Option(
            Path("runs/studies"), "--out", "-o", help="Folder of runs and report; resumes."
        ),
        seeds: int = typer.Option(5, "--seeds", min=1, help="lab: number of bases."),
        workers: int = typer.Option(
            0, "--workers", help="lab: processes at once; 0: one a core. Results don't change."
        ),
        budget: str = typer.Option(
            "", "--budget", help="Begin no further run after this time: 30m, 2h, 90s."
        ),
        results: Path | None = typer.Option(
            None,
            "--results",
            help="smollm2: folder of finished arms' files, a few kilobytes each. Under version "
            "control, a study resumes on another machine. Default: in OUT.",
        ),
        dry_run: bool = typer.Option(
            False, "--dry-run", help="Say what would be run, command by command, and stop."
        ),
    ) -> None:
        """Run a table or figure of the paper and compare the numbers.

        OUT/SCALE/study.html says which differences have the sign that the paper prints, which
        have the other, and which are not significant. Runs are shared between studies and kept:
        equal recipe, seed and settings are run once. A study that has no meaning at a scale says
        so.

        Examples:

            endprompt study

            endprompt study ruler structure --seeds 3 --budget 30m

            endprompt study all --scale paper --dry-run
        """
        from endprompt.errors import RecipeError, nearest
        from endprompt.io import claims
        from endprompt.study import definition

        if not what:
            _list()
            return
        if scale not in definition.SCALES:
            raise RecipeError(
                f"unknown scale {scale!r}{nearest(scale, definition.SCALES)}: "
                f"one of {', '.join(definition.SCALES)}"
            )
        named = definition.names() if what == ["all"] else what
        studies = [definition.load(name) for name in dict.fromkeys(named)]
        folder = out / scale
        held = ctx.with_resource(claims.output(folder, "study", reads=named))
        if scale == "lab":
            _laboratory(studies, held, seeds, workers, budget, dry_run=dry_run)
        elif scale == "smollm2":
            _real_model(studies, held, results or folder / "results", budget, dry_run=dry_run)
        else:
            _commands(studies, held, dry_run=dry_run)


def _list() -> None:
    """Every shipped study and the scales at which it has a meaning."""
    from endprompt.cli.console import Console, Table
    from endprompt.study import definition

    table = Table(box=None, pad_edge=False)
    for head in ("study", "in the paper", "what", "scales"):
        table.add_column(head)
    for name in definition.names():
        study = definition.load(name)
        scales = [scale for scale in definition.SCALES if study.arms_at(scale)]
        table.add_row(name, study.source, study.title, ", ".join(scales))
    Console().print(table, markup=False)


def _laboratory(
    studies: list[Study],
    held: claims.Output,
    seeds: int,
    workers: int,
    budget: str,
    *,
    dry_run: bool,
) -> None:
    import os

    from endprompt.lab import page as lab_page
    from endprompt.lab.study import FIRST_SEED
    from endprompt.models import embedded
    from endprompt.study.laboratory import Laboratory
    from endprompt.units import seconds

    folder = held.folder
    laboratory = Laboratory(
        studies,
        folder / "runs",
        embedded.cache_folder() / "lab",
        seeds=range(FIRST_SEED, FIRST_SEED + seeds),
    )
    todo = laboratory.todo()
    if dry_run:
        for line in todo:
            echo(line)
        echo(f"{len(todo)} runs to do on {seeds} base(s)")
        return

    held.claim({})
    laboratory.run(
        at_once=workers or os.cpu_count() or 1,
        budget_seconds=seconds(budget) if budget else None,
        progress=lambda state: echo(str(state)),
    )
    everything = laboratory.everything()
    if everything:
        lab_page.write(everything, folder / "runs")
    _report(studies, "lab", folder, laboratory, missing=len(laboratory.todo()), seeds=seeds)


def _real_model(
    studies: list[Study], held: claims.Output, results: Path, budget: str, *, dry_run: bool
) -> None:
    from endprompt.cli.screen import Screen
    from endprompt.models import embedded
    from endprompt.study.real_model import Model
    from endprompt.units import seconds

    model = Model(studies, embedded.resolve(None), held.folder, results)
    held.claim({})
    if dry_run:
        for unit in model.todo():
            for job in model.commands(unit):
                echo(job.line)
        echo(f"{len(model.todo())} of {len(model.units())} runs to do")
        return
    with Screen() as screen:
        model.run(
            say=screen.say,
            watch=screen.watch,
            lock=held.lock,
            tell=lambda state: screen.say(str(state)),
            budget_seconds=seconds(budget) if budget else None,
        )
    _report(studies, "smollm2", held.folder, model, missing=len(model.todo()), seeds=0)


def _commands(studies: list[Study], held: claims.Output, *, dry_run: bool) -> None:
    from endprompt.study.commands import Command, Commands

    folder = held.folder
    commands = Commands(studies, folder)
    held.claim({})
    if dry_run:
        commands.write_recipes()
        for planned in commands.commands():
            echo(f"{'# done: ' if planned.done else ''}{planned.line}")
        return

    def tell(place: int, total: int, command: Command) -> None:
        echo(f"[{place + 1}/{total}] {command.line}")

    commands.run(tell)
    _report(studies, "paper", folder, commands, missing=0, seeds=0)


def _report(
    studies: list[Study],
    scale: Scale,
    folder: Path,
    results: Results,
    *,
    missing: int,
    seeds: int,
) -> None:
    from endprompt.io import provenance
    from endprompt.study import compare
    from endprompt.study import page as study_page

    record = compare.everything(
        studies, scale, results, missing=missing, seeds=seeds,
        command=provenance.command(),
    )  # fmt: skip
    study_page.write(record, folder)
    for study in record["studies"]:
        echo("", f"{study['title']} ({study['source']})")
        if study["absent"]:
            echo(f"- no meaning at scale {scale}: {study['absent']}")
        for sentence in study["sentences"]:
            echo(f"- {sentence}")
    if missing:
        echo("", f"{missing} runs are not done: give the same command again to resume")
    echo("", f"{folder / 'study.html'}")
