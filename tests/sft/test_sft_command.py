"""The verb: from a run to a run that can be exported, its mistakes in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from endprompt.cli.app import run as command
from endprompt.export import checkpoint
from tiny_checkpoint import save_run

TARGET = 256


@pytest.fixture
def extended(tiny: Path, tmp_path: Path) -> Path:
    """A finished run of `endprompt train`, as far as others read it."""
    return save_run(tmp_path / "extended", tiny, "yarn", TARGET)


def test_a_run_is_tuned_and_can_be_exported_and_moved(
    extended: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "One?", "completion": "1"}\n' * 2)
    words = ["sft", extended, "--data", chats, "--out", tmp_path / "chat", "--set", "steps=2"]
    assert command([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "2 rows" in said
    assert "step 2/2" in said
    assert "window 256, 2 steps" in said
    shutil.move(tmp_path / "chat", tmp_path / "moved")
    source = checkpoint.find(tmp_path / "moved")
    assert source.model == tmp_path / "moved" / "model"
    assert source.base == str(tiny)
    assert source.target == TARGET
    assert source.recipe.rope.scaling == "yarn"


def test_the_card_of_an_exported_run_tells_base_extension_and_fine_tuning(
    extended: Path, tiny: Path, tmp_path: Path
) -> None:
    found = json.loads((extended / "train.json").read_text()) | {
        "arms": [],
        "checkpoint": "model",
        "command": f"endprompt extend {tiny} --to 256 --out {extended}",
        "model": {"name": "tiny", "path": str(tiny), "source": "org/tiny", "licence": "MIT"},
    }
    (extended / "run.json").write_text(json.dumps(found))
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "One?", "completion": "1"}\n' * 3)
    chat, out = tmp_path / "chat", tmp_path / "mine"
    words = ["sft", extended, "--data", chats, "--out", chat, "--set", "steps=2"]
    assert command([str(word) for word in words]) == 0
    assert command(["export", str(chat), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "`tiny` with its window extended from 128 to 256 tokens, then fine-tuned." in card
    assert "base_model: org/tiny" in card
    told = card.partition("## Fine-tuned after extension")[2].partition("\n## ")[0]
    assert "`endprompt sft`" in told
    assert "| conversations | chats.jsonl |" in told
    assert "| rows | 3, of " in told
    assert "| trained | 2 steps, weights: all" in told
    made = card.partition("## Made by")[2]
    assert "endprompt extend" in made, "the command that extended it is not lost"
    assert str(tmp_path) not in card
    again = ["sft", str(chat), "--data", str(chats), "--out", str(tmp_path / "again")]
    assert command([*again, "--set", "steps=1"]) == 0
    kept = json.loads((tmp_path / "again" / "run.json").read_text())
    assert kept["extended_by"] == found["command"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--data", "none.jsonl", "--set", "packing=maybe"], "settings of sft: packing: input"),
        (["--data", "none.jsonl", "--recipe", "none.yaml"], "no recipe file none.yaml"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["sft", str(tiny), "--out", str(tmp_path / "out"), *words]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
