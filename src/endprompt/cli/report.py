"""`endprompt report`: one HTML page for a run, or for several side by side."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import typer

from endprompt.cli.terminal import echo


def register(app: typer.Typer) -> None:
    """Add the verb `report`."""

    @app.command()
    def report(
        runs: list[Path] = typer.Argument(
            ..., metavar="RUN...", help="Folders of finished runs (each holds a run.json)."
        ),
        out: Path | None = typer.Option(
            None, "--out", "-o", help="The page. Default: report.html in the first run's folder."
        ),
        assets: bool = typer.Option(
            False,
            "--assets",
            help="Also write the figures (SVG, PNG) and the tables (CSV, Markdown) into a folder "
            "beside the page, named after it.",
        ),
        force: bool = typer.Option(False, "--force", help="Overwrite what is there."),
    ) -> None:
        """Write one self-contained page for one run or several.

        Verdict, tables, curves, cost and provenance.

        With several runs, the method of the first is compared with every arm of all of them.
        The page needs no network and can be mailed as it is.

        Examples:

            endprompt report runs/demo

            endprompt report runs/yarn runs/pi --out both.html --assets
        """
        from endprompt.io import claims, result_files
        from endprompt.report.page import write
        from endprompt.report.run_files import read

        records = {name: read(path) for name, path in _named(runs).items()}
        page = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report.html"
        folder = page.with_suffix("")
        folder = folder.with_name(f"{folder.name}-files") if assets else None
        result_files.require_replaceable(page, "report", force=force)
        with (
            nullcontext()
            if folder is None
            else claims.product(folder, "report", reads=runs, force=force)
        ) as partial:
            written = write(records, page, assets=partial)
        echo(f"{page} ({page.stat().st_size / 1024:.0f} KiB)")
        if folder is not None:
            echo(f"{folder} ({len(written) - 1} files)")


def _named(paths: list[Path]) -> dict[str, Path]:
    """Runs by the last part of their path that differs."""
    whole = [path.resolve() for path in paths]
    whole = [path.parent if path.name == "run.json" else path for path in whole]
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(set(whole)):
            break
    return dict(zip(names, paths, strict=True))
