"""`endprompt extend`: the main job, and what it shows on the screen."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from endprompt.cli import defaults, eval_screen
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.extension.prepare import Request


def register(app: typer.Typer) -> None:
    """Add the verb `extend`."""

    @app.command()
    def extend(
        model: str | None = defaults.MODEL,
        to: str = typer.Option("16k", "--to", metavar="TOKENS", help="Target window, as 64k."),
        text: list[str] = defaults.TEXT,
        chat: bool = typer.Option(
            False, "--chat", help="Rows are chats (`messages`): write them with the chat template."
        ),
        method: str = typer.Option(
            "fact-anchors", "--method", help="A method's name or the path of a YAML recipe."
        ),
        scaling: str | None = typer.Option(
            None, "--scaling", help="pi, ntk, yarn, ... in place of the method's own."
        ),
        settings: list[str] = typer.Option(
            [],
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting of the recipe, as training.tokens=100000.",
        ),
        out: Path = typer.Option(
            Path("runs/extend"), "--out", "-o", help="Folder of the run; resumes one in it."
        ),
        controls: bool = typer.Option(
            False,
            "--controls",
            help="Also train the two controls at equal tokens: plain short rows, and the same "
            "content without the jump.",
        ),
        lengths: str | None = typer.Option(
            None, "--lengths", help="Lengths to evaluate at. Default: half the window to target."
        ),
        documents: int | None = typer.Option(
            None, "--documents", min=1, help="Held-out texts to read. Default: 1 on a CPU, else 4."
        ),
        needles: int = typer.Option(
            16,
            "--needles",
            min=1,
            help="Needles, and spans to recall verbatim, asked at each length.",
        ),
        key_tokens: bool = typer.Option(
            False,
            "--key-tokens",
            help="Also evaluate the loss on tokens that gain from far context within the base's "
            "window. Finding them takes about two evaluations, once a run.",
        ),
        eval_dtype: str = typer.Option("auto", "--eval-dtype", help=eval_screen.DTYPE),
        suites: str | None = typer.Option(
            None,
            "--eval",
            metavar="SUITES",
            help="Suites of `eval run` that every arm is asked as well, with tasks and lengths: "
            "ruler:vt+cwe@8k+64k,longbench,untaught,short:mmlu; none. Default: RULER at window "
            "and target where GPUs make it cheap.",
        ),
        suite_settings: list[str] = typer.Option(
            [],
            "--eval-set",
            metavar="KEY=VALUE",
            help="An option of `eval run` for them, as samples=5 or longbench=folder.",
        ),
        processes: int | None = typer.Option(
            None,
            "--processes",
            min=1,
            help="Processes of each training: GPUs, or shares of a CPU. Default: every GPU, or "
            "several trainings side by side where a step fits one; 1 on a CPU.",
        ),
        accelerate_config: Path | None = typer.Option(
            None,
            "--accelerate-config",
            help="YAML of `accelerate config` for the trainings. Default: DDP where the weights "
            "fit, FSDP 2 where they don't, rows cut among GPUs where no GPU holds one.",
        ),
        dry_run: bool = typer.Option(
            False,
            "--dry-run",
            help="Check, prepare the text, and print the command of every job, for a scheduler; "
            "without this option the same command continues from what they left.",
        ),
    ) -> None:
        """Extend a model's context window, and prove it.

        Checks positions, prepares the text, trains on short rows, saves a checkpoint with the
        new window, evaluates it beside the base and the untrained scaling, and writes run.json
        and report.html. A killed run resumes when the same command is given again.

        Examples:

            endprompt extend --out runs/demo

            endprompt extend my-llama --to 64k --text corpus/ --controls --out runs/64k

            endprompt extend my-llama --to 64k --text corpus/ --out runs/64k
            --eval ruler@8k+64k,untaught --eval-set samples=20

            endprompt extend my-llama --to 64k --text corpus/ --out runs/64k --dry-run > jobs.sh
        """
        from endprompt import recipe as recipes
        from endprompt import units

        target = units.tokens(to)
        overrides = recipes.parse_overrides(settings)
        if scaling:
            overrides["rope.scaling"] = scaling
        recipe = recipes.load(method).replace(overrides)
        wanted = units.lengths(lengths) if lengths else None
        from endprompt.cli.screen import Screen
        from endprompt.io import provenance
        from endprompt.io.silence import silence_libraries

        silence_libraries()
        from endprompt.errors import EvaluationError
        from endprompt.extension import run as extension
        from endprompt.extension.prepare import Request
        from endprompt.extension.suites import parse

        if suite_settings and suites is None:
            raise EvaluationError("--eval-set is for the suites of --eval: name them too")
        more = recipes.parse_overrides(suite_settings, option="--eval-set")
        request = Request(
            model=model,
            target=target,
            text=text,
            recipe=recipe,
            out=out,
            controls=controls,
            lengths=wanted,
            documents=documents,
            needles=needles,
            key_tokens=key_tokens,
            eval_dtype=eval_dtype,
            chat=chat,
            command=provenance.command(),
            scaling_chosen=recipes.chooses_scaling(method, overrides),
            processes=processes,
            accelerate_config=accelerate_config,
            suites=None if suites is None else parse(suites, more),
        )
        if dry_run:
            _show_commands(request)
            return
        with Screen() as screen:
            run = extension.run(request, say=screen.say, watch=screen.watch, show=screen.plan)
        _show(run, out)


def _show_commands(request: Request) -> None:
    """A shell script of every job, and of this command at its end."""
    from endprompt.extension import plan

    def say(*lines: str) -> None:
        echo(*(f"# {line}" for line in lines))

    say("Jobs in an order in which they can run; each needs those that its line names.")
    listed = plan.commands(request, say=say)
    echo("", "set -e", f"cd {shlex.quote(str(Path.cwd()))}")
    for job, line in listed:
        after = f", after {', '.join(job.needs)}" if job.needs else ""
        takes = f", on {job.takes} devices" if job.takes > 1 else ""
        done = ", done" if job.result.exists() else ""
        echo("")
        say(f"{job.name}: {job.label}{takes}{after}{done}")
        echo(line)
    echo("", "# report, after all of these")
    echo(request.command.replace(" --dry-run", "", 1))


def _show(run: dict[str, Any], out: Path) -> None:
    """The verdict, the means by length with the best in bold, and where everything lies."""
    from endprompt.cli.console import Console, Table
    from endprompt.report.run_files import metrics
    from endprompt.report.tables import by_length

    console = Console()
    for sentence in run["verdict"][:4]:
        console.print(sentence, markup=False)
    for metric in metrics(run):
        table = by_length(run, metric)
        if table is None:
            continue
        best = max if metric.higher_is_better else min
        console.print()
        console.print(
            table.caption.replace(", by length in tokens", ""), markup=False, style="bold"
        )
        shown = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        for number, column in enumerate(table.columns):
            name = column.replace(" (", "*(").partition("(")[0] if number else column
            shown.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(_cell(cell, table.rows, n, best) for n, cell in enumerate(row)))
        console.print(shown)
    console.print()
    console.print(
        "* past the window; intervals and tasks of suites are in the report", markup=False
    )
    console.print(f"model   {run['checkpoint']}", markup=False, soft_wrap=True)
    console.print(f"record  {out / 'run.json'}", markup=False, soft_wrap=True)
    console.print(f"report  {out / 'report.html'}", markup=False, soft_wrap=True)


def _cell(cell: Any, rows: Any, number: int, best: Any) -> Any:
    """A number, bold where it is the best of its column."""
    from rich.text import Text

    values = [row[number].value for row in rows if row[number].value is not None]
    first = len(values) > 1 and cell.value == best(values)
    return Text(cell.text, style="bold" if first else "")
