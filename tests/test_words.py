"""The field's words: those that were replaced stay out of the package, the README and the docs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RETIRED = {
    r"\bgo(es|ing|ne)? on\b": "resume, continue",
    r"\bapart from each other\b|\b(tell|tells|telling|told)( \w+){0,2} apart\b": "distinguish; "
    "(not) significant",
    r"\bcan(no|')t be told\b": "is not significant",
    r"\b(told|taught)\b": "teacher, distilled; or say who is given what",
    r"\b(nats?|loss|ms|milliseconds|seconds|time|operations|FLOPs|logits|bytes|letters|cheap|"
    r"cheaper|\w+Prompt|radian|points) a token\b": "per token",
    r"\b(digits?|answers?) right\b": "digit accuracy, exact match, accuracy",
    r"\bisolate[sd]?\b": "document mask",
    r"\b(matrix |square )?products\b": "matmuls",
    r"\{trains: |\btraining\.trains\b|\.trains\b|\btrains=": "trainable",
    r"\bneedles(,)? and quotes\b|\bQuote:|\bquote, |\bquotes? (at|are|is) \b|\bfacts and quotes\b":
    "verbatim recall",
}  # fmt: skip
"""Pattern of a retired word -> what is said now."""

ALLOWED = {
    "src/endprompt/recipe.py": ("isolate", "trains", "quotes"),  # earlier names of keys
}

PAGES = [
    path
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*"),
        *(ROOT / "src").rglob("*"),
    ]
    if path.suffix in {".md", ".py", ".yaml", ".html", ".js", ".css", ".ipynb"}
    and path != ROOT / "docs" / "log.md"
]


def retired(text: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """Lines with a retired word, each with what to say in its place."""
    return [
        f"line {number}: {match[0]!r} ({instead}): {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in RETIRED.items()
        for match in re.finditer(pattern, line)
        if match[0] not in allowed
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_retired_words_stay_out(page: Path) -> None:
    allowed = ALLOWED.get(str(page.relative_to(ROOT)), ())
    assert retired(page.read_text(encoding="utf-8"), allowed) == []


@pytest.mark.parametrize(
    "line",
    [
        "the run goes on when it is given again",
        "no measure tells the two apart",
        "loss in nats a token",
        "needle, digits right",
        "rows.isolate: true",
        "training: {trains: lora}",
        "where a matrix products' peak is",
    ],
)
def test_the_check_of_words_can_fail(line: str) -> None:
    assert retired(line)


VAGUE = {"found", "one", "each", "told", "made", "outcome", "reading", "quiet", "cut"}
"""Names that could hold anything."""


def vague(source: str) -> list[str]:
    """Variables, parameters, functions and classes with a vague name, with their lines."""
    named: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.append((node.name, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.append((node.id, node.lineno))
        elif isinstance(node, ast.arg):
            named.append((node.arg, node.lineno))
    return [f"line {line}: {name}" for name, line in named if name.strip("_").lower() in VAGUE]


@pytest.mark.parametrize(
    "file", [path for path in PAGES if path.suffix == ".py"], ids=lambda path: path.stem
)
def test_names_say_what_they_hold(file: Path) -> None:
    assert vague(file.read_text(encoding="utf-8")) == []
    assert file.stem not in VAGUE


def test_the_check_of_names_can_fail() -> None:
    source = "class Found:\n    def cut(self, one):\n        made = [each for each in one]\n"
    assert len(vague(source)) == 5
