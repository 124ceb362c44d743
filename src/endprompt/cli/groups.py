"""A verb that takes its arguments directly and has commands beside."""

from __future__ import annotations

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
