"""rich's console and table with nothing in them that a terminal obeys, but what rich adds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment

from endprompt.cli.terminal import bare, one_line, visible


class Console(rich.console.Console):
    """Strings are printed as single lines: a line break in them is one from outside."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(file=bare(sys.stderr if stderr else sys.stdout), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; see rich."""
        super().print(*(one_line(o) if isinstance(o, str) else o for o in objects), **options)

    def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
        """Segments of anything; see rich."""
        for text, style, control in super().render(*given, **options):
            yield Segment(text if control else visible(text), style, control)


class Table(rich.table.Table):
    """Cells are single lines."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row; see rich."""
        super().add_row(*(one_line(c) if isinstance(c, str) else c for c in cells), **options)
