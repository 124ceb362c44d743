"""The demo's table in docs/results.md and the pictures of it, out of its record.

    .venv/bin/python benchmarks/demo_table.py [RUN.json]

RUN.json is what `endprompt extend --controls` leaves as run.json: it becomes the record, with the
user's home as ~. Without it, the committed record is taken. A table stands between
`<!-- demo: NAME -->` and `<!-- end -->` and is replaced; the numbers around it are not, and have
to be gone over by hand.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from endprompt.report import figures

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "demo.json"
PICTURES = ROOT / "docs" / "pictures"


class Measure(NamedTuple):
    """One thing that is measured; `path` leads from a length's record to its mean."""

    name: str
    part: str
    leaf: str = ""
    digits: int = 3
    higher_is_better: bool = False

    def of(self, arm: dict[str, Any], length: int) -> float:
        """Mean of an arm at a length."""
        found = arm["evaluation"][self.part][str(length)]
        return (found[self.leaf] if self.leaf else found)["mean"]


MEASURES = (
    Measure("loss on the last 256 tokens", "loss"),
    Measure("needle, loss per token", "needle", "nll"),
    Measure("needle, digit accuracy", "needle", "digits", 2, True),
    Measure("needle, exact match", "needle", "hits", 2, True),
    Measure("verbatim recall, loss per token", "quote"),
)


def label(arm: dict[str, Any]) -> str:
    """An arm's name for a reader, YaRN as its authors write it."""
    return arm["label"].replace("YARN", "YaRN")  # as runs before 0.1 wrote it


def _column(values: list[float], measure: Measure) -> list[str]:
    """Values as text, the best in bold; equal ones are equal as shown."""
    shown = [f"{value:.{measure.digits}f}" for value in values]
    best = (max if measure.higher_is_better else min)(shown, key=float)
    return [f"**{text}**" if text == best else text for text in shown]


def _better(measure: Measure) -> str:
    return "higher" if measure.higher_is_better else "lower"


def full(run: dict[str, Any]) -> str:
    """Every measure of every arm at every length."""
    arms, lengths = run["arms"], run["lengths"]
    heads = [f"{n:,}" + (" (target)" if n == run["target"] else "") for n in lengths]
    lines = [
        f"| arm, by length in tokens | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(heads),
    ]
    for measure in MEASURES:
        lines.append(f"| **{measure.name}** ({_better(measure)} is better) |" + " |" * len(heads))
        columns = [_column([measure.of(arm, n) for arm in arms], measure) for n in lengths]
        for arm, *cells in zip(arms, *columns, strict=True):
            lines.append(f"| {label(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(run: dict[str, Any]) -> figures.Drawing:
    """Digit accuracy by length, a line an arm."""
    measure = next(m for m in MEASURES if m.leaf == "digits")
    with figures.settings():
        drawn, grid = figures.new(3.4)
        axes, looks, said = grid[0][0], figures.looks(run), []
        for arm in run["arms"]:
            values = [measure.of(arm, n) for n in run["lengths"]]
            axes.plot(run["lengths"], values, label=label(arm), marker="o", **looks[arm["name"]])
            said.append(f"{label(arm)} goes from {values[0]:.2f} to {values[-1]:.2f}")
        axes.set_xticks(run["lengths"], [figures.thousands(n) for n in run["lengths"]])
        axes.set_xlabel("length in tokens (the old window is 8K, the target 16K)")
        axes.set_ylabel("digit accuracy of needles")
        axes.set_ylim(0, 1)
        figures.legend(drawn, axes)
    return figures.Drawing("demo-digits", "Digit accuracy by length", "; ".join(said), drawn)


def draw(run: dict[str, Any], folder: Path) -> None:
    """The pictures that the pages show."""
    needles = figures.needle_map(run)
    assert needles is not None
    for drawing in (figure(run), replace(needles, name="demo-needles")):
        svg, _ = drawing.write(folder)
        svg.unlink()


TABLES = {"full": full}


def filled(page: str, run: dict[str, Any]) -> str:
    """A page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](run)}\n{match[3]}"

    return re.sub(r"(<!-- demo: ([a-z ]+) -->)\n.*?(<!-- end -->)", table, page, flags=re.DOTALL)


def main() -> None:
    if len(sys.argv) > 1:
        RECORD.write_text(Path(sys.argv[1]).read_text().replace(str(Path.home()), "~"))
    run = json.loads(RECORD.read_text())
    page = ROOT / "docs" / "results.md"
    page.write_text(filled(page.read_text(), run))
    draw(run, PICTURES)


if __name__ == "__main__":
    main()
