"""`endprompt eval window`: how far a model's window reaches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from endprompt.cli import eval_screen as screen
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.eval.engine import Engine
    from endprompt.eval.window import LengthSummary
    from endprompt.eval.window_keys import KeyFinder, RecordedKeys


def register(_data: typer.Typer, _score: typer.Typer, eval_app: typer.Typer) -> None:
    """Add `eval window`."""

    @eval_app.command()
    def window(
        model: str = typer.Argument(..., help="Checkpoint folder or hub name."),
        data: str = typer.Option(..., "--data", help="Folder or URL of `endprompt prepare`."),
        lengths: str = typer.Option(..., "--lengths", help="Lengths in tokens, as 4k,8k,16k."),
        documents: int = typer.Option(1, "--documents", help="Held-out texts to read."),
        needles: int = typer.Option(
            8, "--needles", help="Needles, and spans to recall verbatim, at each length."
        ),
        seed: int = typer.Option(0, "--seed", help="Decides everything drawn."),
        evaluator: str = typer.Option(
            "",
            "--evaluator",
            help="Also give the loss on key tokens: those that this model (the base) predicts much "
            "better from all that it can read than from an eighth of that. It reads 2.25 times "
            "its window, or the length, for each length.",
        ),
        keys: Path | None = typer.Option(
            None,
            "--keys",
            help="In place of --evaluator: JSON of an `eval window --evaluator` of the same texts, "
            "whose key tokens are taken at no cost.",
        ),
        dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
        out: Path | None = typer.Option(None, "--json", help="Write every value here."),
        progress: Path | None = typer.Option(
            None, "--progress", help="File to keep the progress in, for another process to read."
        ),
    ) -> None:
        """Loss by position, needles and verbatim recall on held-out text.

        One prefill per text answers everything.

        Lengths may go past the model's window: that is where it shows.

        Example:

            endprompt eval window runs/demo/model --data runs/demo/data --lengths 4k,8k,16k
        """
        import time

        from endprompt import units
        from endprompt.io import provenance, result_files
        from endprompt.io.progress import tell

        result_files.require_replaceable(out, "eval window", force=True)
        wanted = units.lengths(lengths)
        from endprompt.data import holdout
        from endprompt.errors import TextError
        from endprompt.eval.engine import Coder
        from endprompt.eval.window import require_room, window_check
        from endprompt.models import embedded
        from endprompt.models.checkpoint import load_tokenizer

        texts = [ids for ids in holdout.held_out_texts(data) if len(ids) >= wanted[-1]][:documents]
        if not texts:
            raise TextError(
                f"no held-out text in {data} has {wanted[-1]} tokens: lower --lengths, or "
                f"prepare longer documents"
            )
        tokenizer = load_tokenizer(embedded.resolve(model))
        require_room(Coder(tokenizer), wanted, needles=needles, seed=seed)
        recorded = _recorded(keys, evaluator)
        began = time.perf_counter()
        engine = screen.load(model, dtype)
        check = window_check(
            engine,
            texts,
            lengths=wanted,
            needles=needles,
            quotes=needles,
            seed=seed,
            keys=recorded or _finder(engine, model, evaluator, dtype),
            progress=lambda done: tell(progress, done, 1.0),
        )
        if out is not None:
            result_files.write(
                out,
                "eval window",
                {
                    **check.model_dump(mode="json"),
                    "seconds": time.perf_counter() - began,
                    "peak_memory_bytes": provenance.peak_memory_bytes(),
                },
            )
        for line in check.summary():
            echo(
                f"{line.length:>7} tokens  loss {line.loss:.3f}  needle {line.needle_per_token:.3f}"
                f"  digits {line.digits_right:.2f} (by quarter, farthest first: "
                + " ".join("-" if q is None else f"{q:.2f}" for q in line.digits_by_quarter)
                + f")  exact match {line.hits:.2f}  verbatim recall {line.quote:.3f}"
                + _key_loss(line)
            )


def _recorded(keys: Path | None, evaluator: str) -> RecordedKeys | None:
    from endprompt.errors import EvaluationError
    from endprompt.eval.window_keys import RecordedKeys
    from endprompt.io import records
    from endprompt.record import Window

    if keys is None:
        return None
    if evaluator:
        raise EvaluationError("--evaluator and --keys both say which tokens are key: give one")
    return RecordedKeys(records.read(keys, Window), keys)


def _finder(engine: Engine, model: str, evaluator: str, dtype: str) -> KeyFinder | None:
    from endprompt.eval.key_tokens import require_same_tokenizer
    from endprompt.eval.window_keys import KeyFinder

    if not evaluator:
        return None
    judge = engine if evaluator == model else screen.load(evaluator, dtype)
    require_same_tokenizer(engine, judge)
    return KeyFinder(judge)


def _key_loss(line: LengthSummary) -> str:
    if line.key_loss is None:
        return ""
    return f"  key tokens {line.key_loss:.3f} ({line.key_tokens})"
