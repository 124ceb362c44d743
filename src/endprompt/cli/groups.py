"""Groups of commands: their help in sections, and a verb that has commands beside its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

DIRECT = "\0"
"""Name of the command that the verb itself is: one that no argument can have."""


class DirectOrCommand(TyperGroup):
    """`prepare verify` is a command; with any other first word the verb is meant itself."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if known else [DIRECT, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == DIRECT else name), command, rest


def in_sections(sections: Mapping[str, tuple[str, ...]]) -> type[TyperGroup]:
    """Class of a group whose help lists its commands under these headings, as plain text.

    sections  heading -> names of commands, in the order of the help

    A visible command in no section comes last, under "Other".
    """

    class InSections(TyperGroup):
        def format_commands(self, ctx: Any, formatter: Any) -> None:
            visible = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
            visible = {
                name: command for name, command in visible.items() if command and not command.hidden
            }
            placed = {name for names in sections.values() for name in names}
            other = tuple(name for name in visible if name not in placed)
            column = max(map(len, visible), default=0)
            limit = formatter.width - formatter.indent_increment - column - 2
            for heading, names in {**sections, "Other": other}.items():
                rows = [
                    (name.ljust(column), visible[name].get_short_help_str(limit))
                    for name in names
                    if name in visible
                ]
                if rows:
                    with formatter.section(heading):
                        formatter.write_dl(rows)

    return InSections
