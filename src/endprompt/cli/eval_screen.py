"""What the verbs under `eval` share: loading a model, showing progress and tables."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from endprompt.eval.engine import Engine
    from endprompt.eval.run import Bar


DTYPE = (
    "Precision: auto (the checkpoint's own), fast (bfloat16 where this machine is fast in it), "
    "float32, bfloat16 or float16."
)


def load(model: str, dtype: str = "auto") -> Engine:
    """The model of a command, with libraries kept quiet."""
    from endprompt.io.silence import silence_libraries

    silence_libraries()
    from endprompt.eval.engine import Engine
    from endprompt.models import embedded

    engine = Engine.load(embedded.resolve(model), dtype=dtype)
    engine.name = model
    return engine


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def given(ctx: typer.Context, *others: str) -> dict[str, Any]:
    """Options and arguments that stand on the command line, by name, without these others."""
    return {
        name: value
        for name, value in ctx.params.items()
        if name not in others and _is_given(ctx, name)
    }


@contextmanager
def bar(what: str, total: float = 1.0) -> Generator[Callable[[float], None]]:
    """A progress bar on standard error with the time left; call it with the amount done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from endprompt.cli.console import Console

    columns = (what, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def parts_of_progress(path: Path, names: Sequence[str]) -> Bar:
    """Bars for another process to read: several suites as parts of one."""
    from endprompt.io.progress import tell

    @contextmanager
    def part(name: str, total: float) -> Generator[Callable[[float], None]]:
        before = list(names).index(name)
        yield lambda done: tell(path, before + done / max(total, 1), len(names))

    return part


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; floats with three decimals."""
    from endprompt.cli.console import Console, Table

    shown = Table()
    for header in headers:
        shown.add_column(header, overflow="fold")
    for row in rows:
        shown.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(shown)
