"""RULER's wording, read from the installed lm-eval.

The files are parsed, never imported: importing them would load `datasets` and call
`nltk.download`. lm-eval keeps answer prefixes apart and has one misspelling; `templates` gives
NVIDIA's form, and a hash refuses a version of lm-eval whose wording is another.
"""

from __future__ import annotations

import ast
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

from endprompt.errors import DependencyError
from endprompt.io.files import sha256_of

PUBLISHED = "84d40fb8d5b280806c9e2306ece63ed16370bc638bb32b86aa64bde50d6e5fa1"
"""Hash of the wording that equals NVIDIA's generator."""


@dataclass(frozen=True)
class Wording:
    """One task family: the question around `{context}`, and what the answer starts with."""

    question: str
    answer_prefix: str


@dataclass(frozen=True)
class Templates:
    """All fixed texts of the 13 tasks."""

    niah: Wording
    vt: Wording
    cwe: Wording
    fwe: Wording
    qa: Wording
    needle: str
    noise: str
    document: str


@cache
def templates() -> Templates:
    """The wording of NVIDIA's generator.

    Raises DependencyError when lm-eval is missing or words its prompts otherwise.
    """
    spec = util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            "RULER's prompt templates are read from lm-eval: pip install 'endprompt[eval]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "tasks" / "ruler"
    try:
        read = _read(folder)
    except (OSError, SyntaxError, KeyError, StopIteration) as error:
        raise DependencyError(f"{_mismatch()} ({error!r})") from error
    if sha256_of(asdict(read)) != PUBLISHED:
        raise DependencyError(_mismatch())
    return read


def _mismatch() -> str:
    return (
        f"lm-eval {metadata.version('lm-eval')} words RULER's prompts otherwise than NVIDIA's "
        "generator: pip install lm-eval==0.4.13"
    )


def _read(folder: Path) -> Templates:
    niah, needles, vt, cwe, fwe, qa = (
        ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        for name in ("niah_utils", "prepare_niah", "vt_utils", "cwe_utils", "fwe_utils", "qa_utils")
    )
    tracking = _literal(vt, "CONFIG")["variable_tracking"]
    return Templates(
        niah=Wording(_literal(niah, "TEMPLATE"), " " + _plural_prefix(needles)),
        vt=Wording(tracking["template"], tracking["answer_prefix"].replace("assgined", "assigned")),
        cwe=_wording(_literal(cwe, "CONFIG")),
        fwe=_wording(_literal(fwe, "CONFIG")),
        qa=_wording(_literal(qa, "CONFIG")),
        needle=_literal(needles, "NEEDLE"),
        noise=_literal(needles, "haystack"),
        document=_literal(qa, "DOCUMENT_PROMPT"),
    )


def _wording(config: dict[str, str]) -> Wording:
    return Wording(config["template"], " " + config["answer_prefix"].lstrip())


def _literal(tree: ast.Module, name: str):
    """The first literal that is assigned to `name` anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                continue
    raise KeyError(name)


def _plural_prefix(tree: ast.Module) -> str:
    """The answer prefix for several values: an f-string there, a format string here."""
    text = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and ast.unparse(node).endswith("are'")
    )
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
        for part in text.values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    )
