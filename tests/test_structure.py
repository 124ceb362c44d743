"""What DESIGN asks of the code as a whole: imports go one way and stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import endprompt

SOURCE = Path(endprompt.__file__).parent
LAYERS = (
    {"errors"},
    {"record", "quantities", "progress", "hub", "plugins"},
    {"positions", "positions_skips", "rope", "flops", "memory"},
    {"recipe", "theory"},
    {"cues", "embedded"},
    {"data"},
    {"train", "eval", "plan", "methods"},
    {"lab", "report"},
    {"chat", "export"},
    {"jobs", "outcome", "sft"},
    {"extension"},
    {"study"},
    {"cli"},
)
"""A module imports from its own layer's package and from earlier layers only."""
PLACE = {name: place for place, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = ("positions", "rope", "theory", "flops", "recipe", "cues", "errors", "record")


def imports(path: Path) -> set[str]:
    """Top-level names inside endprompt that a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("endprompt"):
            words = (node.module or "").split(".")
            names = [words[1]] if len(words) > 1 else [alias.name for alias in node.names]
            found |= {name for name in names if not name.startswith("__")}
    return found


def backward(path: Path) -> list[str]:
    """Imports of a file that go against the layers."""
    here = path.relative_to(SOURCE).with_suffix("").parts[0]
    found = []
    for name in sorted(imports(path) - {here}):
        if PLACE.get(name, -1) == PLACE[here] and PLACE[here] >= PLACE["train"]:
            found.append(f"{here} imports its peer {name}")
        elif PLACE.get(name, 99) > PLACE[here]:
            found.append(f"{here} imports {name}, which stands above it")
    return found


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if not path.name.startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    assert backward(path) == []


def test_the_check_of_imports_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "rope.py").write_text("from endprompt import train\n")
    assert backward(tmp_path / "rope.py") == ["rope imports train, which stands above it"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "run.py").write_text("def f():\n    from endprompt.eval import engine\n")
    assert backward(tmp_path / "train" / "run.py") == ["train imports its peer eval"]


def loaded(program: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module", [name for name in WITHOUT_TORCH if (SOURCE / f"{name}.py").is_file()]
)
def test_light_modules_do_not_load_torch(module: str) -> None:
    assert not loaded(f"import endprompt.{module}") & {"torch", "transformers", "datasets"}


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "pydantic", "matplotlib", "lm_eval"}
    program = "from endprompt.cli.app import run\nrun(['--help'])"
    assert not loaded(program) & heavy
    assert not loaded("import endprompt") & heavy
