"""The command line. Each verb's module is imported only when that verb is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `endprompt` command."""
    from endprompt.cli.app import run

    sys.exit(run())
