"""`endprompt export`: a checkpoint for the engines that serve it, and its check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from endprompt.cli.groups import DIRECT, DirectOrCommand
from endprompt.cli.terminal import echo

if TYPE_CHECKING:
    from endprompt.export.verify import Verified


def register(app: typer.Typer) -> None:
    """Add the verb with its two commands."""
    verb = typer.Typer(cls=DirectOrCommand)
    verb.command(DIRECT, hidden=True)(export)
    verb.command("verify")(verify)
    app.add_typer(verb, name="export", help="Write a checkpoint that engines load with its window.")


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run; with --rows, of a checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    engines: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="ENGINES",
            help="transformers, vllm, sglang, llama.cpp, joined by commas: refuse when one of them "
            "can't express the scaling. Default: whichever can.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Of the weights: fp32, bf16, fp16. Default: the run's own, its base's."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="TOKENS",
            help="Length of the text that the check reads. Default: 1,024 past the old window.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Upload it to the hub under this name, private where it is new. The token comes "
            "from HF_TOKEN.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            help="Folder of `endprompt rows`: RUN is the checkpoint, or the adapter, that another "
            "trainer made of them.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that nobody has changed.")
    ] = False,
) -> None:
    """Write a run's checkpoint for Transformers, vLLM, SGLang and llama.cpp.

    Safetensors in shards of 5 GB with LoRA merged, the tokenizer with the new window, chat
    template and generation config, a config.json that older readers understand, the base's
    licence files, a model card, and what the model predicts inside and past its old window as
    a reference. `endprompt export verify DIR` compares with it, wherever DIR was copied to.

    Examples:

        endprompt export runs/64k --out my-llama-64k --dtype bf16 --for vllm,sglang

        endprompt export verify my-llama-64k

        endprompt export runs/64k --out my-llama-64k --push me/my-llama-64k

        endprompt export out/checkpoint-1000 --rows rows --out my-llama-64k
    """
    from endprompt import units
    from endprompt.cli.console import Console
    from endprompt.errors import OutputError
    from endprompt.export.engines import checked

    chosen = _dtype(dtype) if dtype else None
    wanted = checked([engine.strip() for engine in engines.split(",")]) if engines else None
    length = units.tokens(tokens) if tokens else None
    from endprompt.io import hub
    from endprompt.io.silence import silence_libraries

    if push:
        hub.check(push)
    silence_libraries()
    from endprompt.export import checkpoint

    console = Console()
    with console.status("") as status:
        done = checkpoint.export(
            run,
            out,
            rows=rows,
            wanted=wanted,
            dtype=chosen,
            tokens=length,
            force=force,
            say=status.update,
        )
    for engine in done.served:
        line = f"cannot serve it: {engine.obstacle}" if engine.obstacle else engine.command
        echo(f"{engine.engine}:", f"    {line}", *([f"    {engine.note}"] if engine.note else []))
    echo(
        "",
        f"model   {done.folder}",
        f"card    {done.folder / 'README.md'}",
        f"check   endprompt export verify {done.folder}",
    )
    if push:
        with console.status(f"uploading to {push}"):
            try:
                address = hub.push(done.folder, push, kind="model", message="Add the model")
            except OutputError as error:
                raise OutputError(f"{error}; then: hf upload {push} {done.folder}") from None
        console.print(f"hub     {address}", markup=False, highlight=False, soft_wrap=True)


def _dtype(name: str) -> str:
    """Transformers' name of a dtype. Raises RecipeError for another."""
    from endprompt.errors import RecipeError

    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if name not in (*names, *names.values()):
        raise RecipeError(f"--dtype {name!r}: one of fp32, bf16, fp16")
    return names.get(name, name)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `endprompt export` wrote.")],
    url: Annotated[
        str | None,
        typer.Option("--url", help="Ask a server in place, as http://127.0.0.1:8000/v1."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Under which the server knows the model. Default: DIR."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="With --url: what the server computes in, fp32, fp16 or bf16. Less is allowed "
            "to differ in fp32 and fp16.",
        ),
    ] = "bf16",
) -> None:
    """Compare an exported checkpoint with the model as it was trained.

    Loads DIR with Transformers as anybody would, or asks a server that runs it, and compares
    log-probabilities of next tokens at lengths inside and past the old window. Beside each
    difference stands the one that unscaled RoPE would make. Exit code 1 when a check fails.

    Examples:

        endprompt export verify my-llama-64k

        endprompt export verify my-llama-64k --url http://127.0.0.1:8000/v1 --dtype fp32
    """
    from endprompt.io.silence import silence_libraries

    computed = _dtype(dtype)
    silence_libraries()
    from endprompt.errors import EvaluationError
    from endprompt.export import verify as checking

    verified: Verified = (
        checking.verify_server(folder, url, name or str(folder), computed)
        if url
        else checking.verify(folder)
    )
    for check in verified.checks:
        mark = "ok  " if check.passed else "FAIL"
        echo(f"{mark}  {check.name:<40} {check.detail}")
    if verified.predictions:
        echo(
            "",
            "log-probability of the likeliest next token, nats",
            f"{'tokens':>9} {'as trained':>11} {'here':>9} {'unscaled':>9}  token",
        )
    for place in verified.predictions:
        here = "absent" if place.here is None else f"{place.here:.4f}"
        echo(f"{place.length:>9,} {place.trained:>11.4f} {here:>9} {place.unscaled:>9.4f}  "
                   f"{place.text!r}")  # fmt: skip
    failed = [check.name for check in verified.checks if not check.passed]
    if failed:
        raise EvaluationError(f"{folder} is not the model that was trained: {'; '.join(failed)}")
