"""What DESIGN asks of the code as a whole: imports go one way and stay light."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import endprompt

SOURCE = Path(endprompt.__file__).parent
ROOMS = {
    "io": "",
    "models": "io",
    "cost": "io models",
    "data": "io models",
    "train": "io models cost data",
    "eval": "io models data",
    "compare": "io",
    "report": "io compare",
    "analysis": "io models cost data train report",
    "export": "io models eval report",
    "chat": "io models eval",
    "sft": "io models cost data train export",
    "trainers": "io models cost data train",
    "tuning": "io models data train eval",
    "extension": "io models cost data train eval analysis compare report",
    "lab": "io models cost data train eval analysis compare report",
    "study": "io models cost data train eval analysis compare report extension lab",
}
"""What each room may import, beside the root. `cli` may import everything."""
ROOT_MODULES = (
    "errors", "units", "record", "stats", "plugins", "positions", "distances", "theory", "rope",
    "recipe", "cues", "yaml_text",
)  # fmt: skip
"""What a recipe means. These import one another alone, and never torch."""
WITHOUT_TORCH = tuple(name for name in ROOT_MODULES if (SOURCE / f"{name}.py").is_file())


def module_of(path: Path) -> str:
    """Dotted name inside endprompt: `train.run`, `train` for a room's own file."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Every module of the package."""
    return {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules inside endprompt that a file imports, wherever the import stands."""
    known = modules()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "endprompt":
            module = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                name = f"{module}.{alias.name}".lstrip(".")
                found.add(name if name in known else module)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name[10:] for name in names if name.startswith("endprompt.")}
    return found - {"", "__init__", module_of(path)}


def backward(path: Path) -> list[str]:
    """Imports of a file that go against the order of the rooms."""
    here = module_of(path).split(".")[0]
    if here in ("cli", "__main__", "__init__"):
        return []
    allowed = (*ROOMS.get(here, "").split(), *ROOT_MODULES, here)
    return sorted(
        f"{module_of(path)} imports {name}"
        for name in imports(path)
        if name.split(".")[0] not in allowed
    )


def circles() -> list[str]:
    """Modules that import each other, directly or through others."""
    arrows = {name: imports(path) for name, path in modules().items()}
    found = []
    for start in arrows:
        reached: set[str] = set()
        todo = [start]
        while todo:
            for name in arrows.get(todo.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    todo.append(name)
        if start in reached:
            found.append(start)
    return found


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if not path.name.startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    assert backward(path) == []


def test_no_module_imports_itself_through_others() -> None:
    assert circles() == []


def test_every_module_is_in_a_room() -> None:
    known = {*ROOMS, *ROOT_MODULES, "cli", "__main__", "__init__"}
    assert {name.split(".")[0] or "__init__" for name in modules()} <= known


PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
README = PAGE.parents[1] / "README.md"


def tree(page: str) -> dict[str, str]:
    """Names and what they hold, of the tree that follows `<!-- tree -->` on a page."""
    lines = page.partition("<!-- tree -->\n```\n")[2].partition("```")[0].splitlines()
    assert lines[0] == "src/endprompt/"
    return dict(line.strip().split(maxsplit=1) for line in lines[1:])


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda path: path.name)
def test_the_tree_of_a_page_is_the_real_one(page: Path) -> None:
    shown = tree(page.read_text())
    folders = {f"{path.name}/" for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__/"}
    files = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    assert set(shown) == folders | files
    assert shown == tree(PAGE.read_text())


def test_the_page_says_what_each_room_may_import() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert {room: " ".join(re.findall(r"\w+", said)) for room, said in rows} == ROOMS


def test_test_files_have_names_of_their_own() -> None:
    """Of two of one name pytest collects one."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_tests_mirror_the_rooms() -> None:
    tests = Path(__file__).parent
    folders = {path.name for path in tests.iterdir() if any(path.glob("test_*.py"))}
    assert folders <= {*ROOMS, "cli"}


LONGEST = 60
"""Lines of logic that a function has at most."""
NO_LOGIC = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def logic(source: str) -> dict[str, int]:
    """Lines of each function: no signature, docstring, blank, comment or inner function."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_LOGIC:
            code |= set(range(token.start[0], token.end[0] + 1))
    counts = {}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            body = function.body[ast.get_docstring(function) is not None :]
            lines = set(range(body[0].lineno, (body[-1].end_lineno or 0) + 1)) if body else set()
            for inner in ast.walk(function):
                if inner is not function and isinstance(inner, ast.FunctionDef | ast.ClassDef):
                    above = [inner.lineno, *(node.lineno for node in inner.decorator_list)]
                    lines -= set(range(min(above), (inner.end_lineno or 0) + 1))
            counts[f"{function.name}, line {function.lineno}"] = len(lines & code)
    return counts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_function_has_more_than_sixty_lines_of_logic(path: Path) -> None:
    counts = logic(path.read_text())
    assert {name: lines for name, lines in counts.items() if lines > LONGEST} == {}


def test_lines_of_logic_are_counted_without_words_and_inner_functions() -> None:
    source = '''
def outer(
    a,
):
    """Words.

    More words.
    """
    # why
    b = a

    @decorated
    def inner():
        return 1

    return [
        b,
    ]
'''
    assert logic(source) == {"outer, line 2": 4, "inner, line 13": 1}


def test_the_check_of_imports_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "eval").mkdir()
    (tmp_path / "rope.py").write_text("from endprompt.train import run\n")
    (tmp_path / "train" / "run.py").write_text("def f():\n    from endprompt.eval import engine\n")
    (tmp_path / "eval" / "engine.py").write_text("from endprompt import rope\n")
    assert backward(tmp_path / "rope.py") == ["rope imports train.run"]
    assert backward(tmp_path / "train" / "run.py") == ["train.run imports eval.engine"]
    assert circles() == ["eval.engine", "rope", "train.run"]


def loaded(program: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_light_modules_do_not_load_torch(module: str) -> None:
    assert not loaded(f"import endprompt.{module}") & {"torch", "transformers", "datasets"}


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "pydantic", "matplotlib", "lm_eval"}
    program = "from endprompt.cli.app import run\nrun(['--help'])"
    assert not loaded(program) & heavy
    assert not loaded("import endprompt") & heavy
