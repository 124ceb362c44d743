"""A command that writes one file where the user says never writes over a file of the user's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from endprompt.cli.app import app, run
from tiny_checkpoint import save_tiny

COMMANDS: dict[str, list[str]] = {
    "plan": ["llama-3-8b", "--to", "64k"],
    "doctor": ["{tiny}", "--to", "2048"],
    "eval perplexity": ["{tiny}", "--tokens", "{text}", "--window", "64"],
    "eval window": ["{tiny}", "--data", "{text}", "--lengths", "64"],
    "eval untaught": ["{tiny}", "--data", "{text}", "--lengths", "64"],
    "eval needle": ["{tiny}", "--text", "{text}", "--lengths", "64"],
    "eval compare": ["{text}", "{text}"],
    "eval score ruler": ["--task", "qa_1", "--predictions", "{text}"],
    "eval score longbench": ["--dataset", "qasper", "--predictions", "{text}"],
}
"""Words of each command with --json."""


def _with_json(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Name of every command that has --json, and whether it has --force."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from _with_json(inner, (*name, word))
    options = {option for part in command.params for option in part.opts}
    if "--json" in options:
        yield " ".join(name), "--force" in options


FORCED = dict(_with_json(get_command(app)))


def test_the_table_has_every_command_with_json() -> None:
    assert set(COMMANDS) == set(FORCED)


STRANGERS = {"mine": {"mine": 1}, "a run": {"kind": "run", "versions": {"endprompt": "0.1.0"}}}
"""Files of the user's, and of another command."""


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("content", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_result_of_something_else_is_never_overwritten(
    verb: str, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text = tmp_path / "there.json", tmp_path / "text.txt"
    file.write_text(json.dumps(content))
    text.write_text("some text")
    places = {"tiny": save_tiny(tmp_path / "tiny"), "text": text}
    words = [*verb.split(), *(word.format(**places) for word in COMMANDS[verb])]
    for force in ([], ["--force"]) if FORCED[verb] else ([],):
        assert run([*words, "--json", str(file), *force]) == 1
        assert f"`endprompt {verb}` did not write it" in capsys.readouterr().err
    assert json.loads(file.read_text()) == content


OTHERS = {
    "f.svg": "eval needle {tiny} --text {text} --lengths 64 --figure",
    "f.png": "eval needle {tiny} --text {text} --lengths 64 --figure",
    "f.jsonl": "eval data longbench --dataset qasper --file {text} --tokenizer {tiny} "
    "--max-length 64 --out",
}
"""Commands that write a file of another kind, by a name of that file, which follows."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_picture_or_prompts_of_something_else_are_never_overwritten(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text = tmp_path / name, tmp_path / "text.txt"
    file.write_text("all about endprompt")
    text.write_text("some text")
    places = {"tiny": save_tiny(tmp_path / "tiny"), "text": text}
    words = [word.format(**places) for word in OTHERS[name].split()]
    for force in ([], ["--force"]):
        assert run([*words, str(file), *force]) == 1
        assert "did not write it" in capsys.readouterr().err
    assert file.read_text() == "all about endprompt"


def test_a_file_of_ours_is_overwritten_with_force_alone(tmp_path: Path) -> None:
    words = ["plan", "llama-3-8b", "--to", "64k", "--json", str(tmp_path / "plan.json")]
    assert run(words) == 0
    assert run(words) == 1
    assert run([*words, "--force"]) == 0
