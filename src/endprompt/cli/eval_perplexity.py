"""`endprompt eval perplexity`."""

from __future__ import annotations

from pathlib import Path

import typer

from endprompt.cli import eval_screen as screen


def register(_data: typer.Typer, _score: typer.Typer, eval_app: typer.Typer) -> None:
    """Add `eval perplexity`."""
    eval_app.command()(perplexity)


def perplexity(
    model: str = typer.Argument(..., help="Checkpoint folder, GGUF file or hub name."),
    tokens: Path = typer.Option(
        ...,
        "--tokens",
        help="Token ids: .npy, or raw uint16 (uint32 where the vocabulary exceeds 65536).",
    ),
    window: str = typer.Option(..., "--window", help="W, tokens; or several: 4k,8k,16k."),
    stride: str = typer.Option(
        "", "--stride", help="S, tokens, at most W. Default: half the shortest window."
    ),
    definition: str = typer.Option(
        "strided",
        "--definition",
        help="strided: each token once, with at least W-S tokens before it. "
        "window-mean: the mean over overlapping windows of their mean loss, as LCEG and LongLoRA. "
        "rolling: lm-eval's rolling log-likelihood (it has no stride).",
    ),
    evaluator: str = typer.Option(
        "",
        "--evaluator",
        help="Also give the loss on key tokens: those that this model (the base, or one with a "
        "longer window and the same tokenizer) says much better from far context (LongPPL).",
    ),
    contexts: str = typer.Option(
        "",
        "--contexts",
        help="Short contexts, rising, that key tokens need more than: 512,2k,4k. "
        "Default: an eighth, a quarter and a half of the shortest window.",
    ),
    out: Path | None = typer.Option(None, "--json", help="Write every value here."),
    dtype: str = typer.Option("auto", "--dtype", help=screen.DTYPE),
    force: bool = typer.Option(False, "--force", help="Overwrite the file."),
) -> None:
    """Perplexity of a token file, in one of its three definitions.

    Prints nats per token, perplexity, bits per byte (of the text that the tokens stand for) and
    the sum, for each window; the JSON also holds the loss by position in the window.

    Examples:

        endprompt eval perplexity runs/demo/model --tokens pg19.bin --window 8192 --stride 256

        endprompt eval perplexity runs/demo/model --tokens pg19.bin --window 16k --evaluator long
    """
    from endprompt import units
    from endprompt.errors import EvaluationError, nearest
    from endprompt.eval import perplexity as measure
    from endprompt.io import result_files

    kind = next((known for known in measure.DEFINITIONS if known == definition), None)
    if kind is None:
        raise EvaluationError(
            f"no definition {definition!r}{nearest(definition, measure.DEFINITIONS)}: "
            f"one of {', '.join(measure.DEFINITIONS)}"
        )
    windows = units.lengths(window)
    step = units.tokens(stride) if stride else max(windows[0] // 2, 1)
    result_files.require_replaceable(out, "eval perplexity", force=force)
    engine = screen.load(model, dtype)
    with screen.bar("tokens") as progress:
        result = measure.perplexity(
            engine, tokens, windows=windows, stride=step, definition=kind, progress=progress
        )
    screen.table(
        ["window", "windows", "tokens", "nats/token", "perplexity", "bits/byte", "sum, nats"],
        (
            [
                row.window,
                row.windows,
                row.scored,
                row.nats_per_token,
                row.perplexity,
                "-" if row.bits_per_byte is None else row.bits_per_byte,
                row.nll_sum,
            ]
            for row in result.by_length
        ),
    )
    values = result.model_dump(mode="json")
    if evaluator:
        from endprompt.eval import key_tokens

        short = units.lengths(contexts) if contexts else [windows[0] // n for n in (8, 4, 2)]
        with screen.bar("pieces") as progress:
            key = key_tokens.loss_on_key_tokens(
                engine,
                screen.load(evaluator, dtype),
                tokens,
                windows=windows,
                contexts=short,
                progress=progress,
            )
        screen.table(
            ["window", "context needed", "key tokens", "nats/token", "perplexity", "evaluator's"],
            ([loss.window, f"{loss.above:,}-{loss.upto:,}", loss.tokens, *(
                "-" if value is None else value
                for value in (loss.nats_per_token, loss.perplexity, loss.evaluator)
            )] for loss in key.losses),
        )  # fmt: skip
        values["key_tokens"] = key.model_dump(mode="json")
    if out is not None:
        result_files.write(out, "eval perplexity", values)
