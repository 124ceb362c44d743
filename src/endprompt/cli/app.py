"""The verbs of the command line, and what happens to errors.

Modules beside this one import nothing heavy at the top: `endprompt --help` loads them all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module

import typer

from endprompt.cli.groups import in_sections
from endprompt.cli.terminal import echo, guarded

INTERRUPTED = 130
SECTIONS: dict[str, tuple[str, ...]] = {
    "The main job": ("extend", "plan", "methods", "tune-scaling"),
    "Data and training": ("prepare", "train", "rows", "accelerate", "sft"),
    "Evaluation": ("eval", "report"),
    "Looking inside": ("doctor", "inspect"),
    "Comparing": ("lab", "study"),
    "Giving away": ("export", "chat"),
}
"""Verbs by heading, in the order of `--help`; a module of this package adds each."""
MODULES = {"eval": "evaluate", "tune-scaling": "tune_scaling"}
"""Verbs whose module has another name than they have."""

app = typer.Typer(
    name="endprompt",
    cls=in_sections(SECTIONS),
    help="Give a RoPE language model a longer context window by training on short sequences.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verbs in SECTIONS.values():
    for verb in verbs:
        import_module(f"endprompt.cli.{MODULES.get(verb, verb)}").register(app)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Options that stand before the verb."""
    if version:
        from endprompt import __version__

        echo(__version__)
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run one command; an EndPromptError or a full disk becomes one line and exit code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when a verb first imports it
    with guarded():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    from endprompt.errors import EndPromptError

    try:
        app(args=arguments, standalone_mode=True)
    except SystemExit as done:
        if done.code == INTERRUPTED:  # typer turns Ctrl-C into this, without a word
            echo("endprompt: stopped; give the same command again to resume", err=True)
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except EndPromptError as error:
        echo(f"endprompt: {error}", err=True)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        where = f" {error.filename}" if error.filename else ""
        echo(f"endprompt: {error.strerror or error}{where}", err=True)
        return 1
    return 0
