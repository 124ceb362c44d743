r"""What reaches a terminal: text, and never a byte from outside that the terminal would obey.

Names of files, keys of data, answers of models and servers may hold escape sequences, carriage
returns, line breaks and marks that turn the direction of writing. `guarded` replaces what is
written to standard output and error, by whatever library, so that such characters are seen and
not obeyed (ESC as \x1b). `echo` writes whole lines, in which line breaks are made visible too;
`endprompt.cli.console` does the same for rich, whose own escape sequences pass.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import typer

from endprompt.io.secrets import redact

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_BAR = re.compile(r"\r?(?:\n|\x1b\[A)*")
"""How progress bars of other libraries (tqdm) begin: back to the start of the line, or up."""


def visible(text: str) -> str:
    r"""The text with every character that a terminal obeys as its escape; line feeds and tabs stay.

    >>> visible("a\x1b[2Jb\u202ec\r")
    'a\\x1b[2Jb\\u202ec\\r'
    """
    return _OBEYED.sub(_escape, text)


def one_line(text: str) -> str:
    """The same with line feeds as their escape."""
    return visible(text).replace("\n", "\\n")


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def echo(*lines: object, err: bool = False) -> None:
    """Write whole lines, without secrets and with their line breaks made visible."""
    for line in lines:
        typer.echo(one_line(redact(str(line))), err=err)


def write(text: str) -> None:
    """Write text as it is, of one line or many; other characters are made visible all the same."""
    typer.echo(visible(text), nl=False)


class Visible:
    """A stream of text whose writer may be anyone.

    errors  messages and bars of other libraries: secrets are left out, and bars may move to the
            start of the line, and up
    """

    def __init__(self, stream: Any, *, errors: bool = False) -> None:
        self.stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        """Write what may be seen of it."""
        start = _BAR.match(text) if self._errors else None
        moves = start.group() if start else ""
        rest = text[len(moves) :]
        if rest and "\x1b" in moves:  # a bar that moves up writes nothing else with that
            moves, rest = "", text
        self.stream.write(moves + visible(redact(rest) if self._errors else rest))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def bare(stream: Any) -> Any:
    """The stream behind `guarded`, for a writer that makes things visible itself."""
    return stream.stream if isinstance(stream, Visible) else stream


@contextmanager
def guarded() -> Generator[None]:
    """Standard output and error with nothing from outside that a terminal obeys."""
    before = sys.stdout, sys.stderr
    sys.stdout = Visible(bare(sys.stdout))
    sys.stderr = Visible(bare(sys.stderr), errors=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
