"""`endprompt eval untaught`: tasks that no training row teaches, by distance."""

from __future__ import annotations

from pathlib import Path

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo


def register(_data: typer.Typer, _score: typer.Typer, eval_app: typer.Typer) -> None:
    """Add `eval untaught`."""

    @eval_app.command()
    def untaught(
        model: str = typer.Argument(..., help="Checkpoint folder or hub name."),
        data: str = typer.Option(
            ...,
            "--data",
            help="Folder or URL of `endprompt prepare`; facts are hidden in it.",
        ),
        lengths: str = typer.Option(..., "--lengths", help="Lengths in tokens, as 8k,32k."),
        tasks: str = typer.Option("all", "--tasks", help="json-kv, facts-1, facts-2, mrcr, ..."),
        asked: int = typer.Option(32, "--asked", min=4, help="Questions of a task and length."),
        seed: int = typer.Option(0, "--seed", help="Decides everything drawn."),
        dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
        out: Path | None = typer.Option(None, "--json", help="Write every value here."),
        progress: Path | None = typer.Option(
            None, "--progress", help="File to keep the progress in, for another process to read."
        ),
    ) -> None:
        """Tasks that no training row teaches, by distance.

        JSON key-value, facts in text, co-reference and graphs. A context is read once, and every
        answer is scored by its likelihood after its question. `eval run` asks
        the same tasks in words.

        Example:

            endprompt eval untaught runs/demo/model --data runs/demo/data --lengths 8k,16k
        """
        from endprompt import units
        from endprompt.errors import EvaluationError, TextError, nearest
        from endprompt.eval.untaught import TASKS, check, sentences_of
        from endprompt.io import result_files
        from endprompt.io.progress import tell

        result_files.require_replaceable(out, "eval untaught", force=True)
        wanted = units.lengths(lengths)
        names = list(TASKS) if tasks == "all" else [name.strip() for name in tasks.split(",")]
        for name in names:
            if name not in TASKS:
                raise EvaluationError(
                    f"no task {name!r}{nearest(name, TASKS)}: one of {', '.join(TASKS)}"
                )
        from endprompt.data import holdout

        texts = holdout.held_out_texts(data)
        if not texts:
            raise TextError(f"no held-out text in {data}: prepare it with --holdout")
        engine = screen.load(model, dtype)
        checked = check(
            engine,
            tasks=names,
            lengths=wanted,
            sentences=sentences_of(engine.decode_answer(texts[0].tolist())),
            asked=asked,
            seed=seed,
            progress=lambda done: tell(progress, done, 1.0),
        )
        if out is not None:
            result_files.write(out, "eval untaught", checked.model_dump(mode="json"))
        for length in checked.lengths:
            for task in names:
                right = checked.by_quarter(task, length)
                nats = [a.nll for a in checked.answers if (a.task, a.length) == (task, length)]
                echo(
                    f"{length:>7} tokens  {task:<10}  {sum(nats) / len(nats):.3f} nats per token  "
                    "right by quarter, farthest first: "
                    + " ".join("-" if q is None else f"{q:.2f}" for q in right)
                )
