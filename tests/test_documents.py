"""What the guides say is there: errors, links, commands, examples, versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from matplotlib.image import imread

from endprompt import __version__, errors
from endprompt.cli.app import app
from endprompt.study import definition

ROOT = Path(__file__).parents[1]


def test_every_error_has_its_remedy() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    names = {
        name
        for name, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.EndPromptError) and thing is not errors.EndPromptError
    }
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == names


def test_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message may go over several lines
    messages = re.findall(r"^\| `([^`]* [^`]*)` \|", page, re.MULTILINE)
    checks = re.findall(r"\*([^*]+)\*", page.partition("## The position check failed")[2])
    assert len(messages) > 15
    assert len(checks) > 5
    for message in [*messages, *checks]:
        parts = [re.escape(part) for part in message.split("…")]
        assert re.search(".+".join(parts), source), message


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name
)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [link for link in links if not link.startswith(("http", "mailto"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command that the guides show whole."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("endprompt ") and "..." not in line and "[" not in line:
                    yield page.name, shlex.split(line.partition(" | ")[0], comments=True)[1:]


def test_commands_in_the_guides_have_the_options_that_they_show() -> None:
    shown = list(commands())
    assert len(shown) > 30
    for page, words in shown:
        command: Any = typer.main.get_command(app)
        context = click.Context(command)
        try:
            while isinstance(command, click.Group) and words:
                name, *words = words
                found = command.get_command(context, name)
                assert found is not None, f"{page}: {name}"
                command, context = found, click.Context(found, parent=context)
            command.make_parser(context).parse_args(words)
        except click.UsageError as error:
            pytest.fail(f"{page}: {command.name}: {error.format_message()}")


def named(code: ast.Module) -> dict[str, Any]:
    """What the imports of an example bind, of this package."""
    found: dict[str, Any] = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            found |= {
                name.asname or name.name: importlib.import_module(name.name)
                for name in node.names
                if name.name.startswith("endprompt")
            }
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("endprompt"):
            inside = importlib.import_module(str(node.module))
            for name in node.names:
                if not hasattr(inside, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(inside, name.name)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()],
                         ids=lambda page: page.name)  # fmt: skip
def test_calls_in_python_examples_fit_the_functions(page: Path) -> None:
    import endprompt

    bound = 0
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        code = ast.parse(block)
        known = {"endprompt": endprompt, **named(code)}
        for call in (node for node in ast.walk(code) if isinstance(node, ast.Call)):
            root, *rest = ast.unparse(call.func).split(".")
            if root not in known:
                continue
            function = known[root]
            for part in rest:
                function = getattr(function, part)
            keywords = {word.arg: None for word in call.keywords if word.arg}
            inspect.signature(function).bind(*call.args, **keywords)
            bound += 1
    assert bound


def test_the_tables_of_the_demo_are_those_of_its_record() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "demo_table.py"))
    run = json.loads(script["RECORD"].read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    assert text.count("<!-- demo: ") == 1
    assert script["filled"](text, run) == text
    run["arms"][2]["evaluation"]["loss"][str(run["target"])]["mean"] += 0.01
    assert script["filled"](text, run) != text


@pytest.mark.parametrize(("page", "tables"), [("README.md", 1), ("docs/results.md", 4)])
def test_the_tables_of_the_proof_are_those_of_its_files(
    tmp_path: Path, page: str, tables: int
) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "proof_table.py"))
    text = (ROOT / page).read_text()
    assert text.count("<!-- proof: ") == tables
    assert script["filled"](text, script["Proof"](script["RESULTS"])) == text
    for file in script["RESULTS"].glob("*.json"):
        record = json.loads(file.read_text())
        for answer in record["untaught"]["answers"]:
            answer["right"] = 0.5
        (tmp_path / file.name).write_text(json.dumps(record))
    assert script["filled"](text, script["Proof"](tmp_path)) != text


def test_the_pictures_of_the_demo_are_those_of_its_record(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "demo_table.py"))
    script["draw"](json.loads(script["RECORD"].read_text()), tmp_path)
    for made in sorted(tmp_path.iterdir()):
        kept, drawn = imread(script["PICTURES"] / made.name), imread(made)
        assert kept.shape == drawn.shape
        assert abs(kept - drawn).mean() < 0.002, f"{made.name}: run benchmarks/demo_table.py"


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").rglob("*.json")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_results_name_no_folder_of_the_machine_that_made_them(file: Path) -> None:
    assert (
        re.findall(r"(?<![\w~.])/(?:root|home|tmp|work|opt|Users)/[^\"]*", file.read_text()) == []
    )


def test_the_trial_of_questions_has_the_rows_of_its_study() -> None:
    study = definition.load(ROOT / "benchmarks" / "questions.yaml")
    record = json.loads((ROOT / "benchmarks" / "results" / "questions.json").read_text())
    (kept,) = record["studies"]
    assert {arm["name"] for arm in kept["arms"]} == set(study.arms)
    for arm in kept["arms"]:
        (run,) = arm["runs"]
        rows = study.arms[arm["name"]].built().rows.model_dump(mode="json")
        assert run["recipe"]["rows"] == rows, arm["name"]


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("![") == 1
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    results = [table for table in tables if "loss" in table]
    assert [table.count("\n") - 2 for table in results] == [9]


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
