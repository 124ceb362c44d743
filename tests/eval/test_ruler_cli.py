"""`eval data ruler` and `eval score ruler` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruler_tokenizer import write_tokenizer

from endprompt.cli.app import run
from endprompt.eval.ruler import TASKS, standin
from endprompt.eval.scores import Scores
from endprompt.io import records
from endprompt.io.files import sha256_file


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "rules")


def made(tokenizer: Path, out: Path, *words: str) -> list[str]:
    return [
        *("eval", "data", "ruler", "--tokenizer", str(tokenizer), "--out", str(out)),
        *("--num-samples", "2", *words),
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_task_is_one_file_and_its_record(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "F.jsonl"
    command = made(tokenizer, out, "--task", "niah_single_1", "--length", "2k", "--seed", "42")
    assert run(command) == 0
    rows = lines(out)
    assert [row["index"] for row in rows] == [0, 1]
    assert list(rows[0]) == [
        *("index", "input", "outputs", "length", "answer_prefix", "token_position_answer"),
    ]
    record = json.loads((tmp_path / "F.jsonl.meta.json").read_text())
    assert record["sha256"] == sha256_file(out)
    assert (record["task"], record["length"], record["note"]) == ("niah_single_1", 2048, None)
    assert "comparable" not in capsys.readouterr().out
    assert run(command) == 1
    assert "exists: choose another --out or add --force" in capsys.readouterr().err
    before = out.read_bytes()
    assert run([*command, "--force"]) == 0
    assert out.read_bytes() == before, "the same run twice gives the same file"


def test_stand_in_is_said_in_record_on_screen_and_with_the_score(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, predictions, scores = (tmp_path / name for name in ("F.jsonl", "P.jsonl", "S.json"))
    assert run(made(tokenizer, out, "--task", "qa_1", "--length", "2048")) == 0
    said = "not comparable with published RULER"
    assert said in capsys.readouterr().out
    assert said in json.loads((tmp_path / "F.jsonl.meta.json").read_text())["note"]
    rows = [{"pred": row["outputs"][0], "outputs": row["outputs"]} for row in lines(out)]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "score", "ruler", "--task", "qa_1", "--predictions", str(predictions)]
    assert run([*command, "--json", str(scores), "--data", str(out)]) == 0
    assert "squad are made-up text" in capsys.readouterr().out
    (row,) = json.loads(scores.read_text())["scores"]
    assert (row["score"], row["samples"], row["length"]) == (100.0, 2, 2048)
    assert row["detail"] == {"nulls": 0}
    assert said in row["note"]
    assert run(command) == 0
    assert f"{said}: no record says" in capsys.readouterr().out


def test_given_files_are_comparable(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squad = tmp_path / "dev-v2.0.json"
    squad.write_text(json.dumps(standin.squad()))
    out = tmp_path / "F.jsonl"
    command = made(tokenizer, out, "--task", "qa_1", "--length", "2048", "--squad", str(squad))
    assert run(command) == 0
    assert "comparable" not in capsys.readouterr().out
    record = json.loads((tmp_path / "F.jsonl.meta.json").read_text())
    assert record["sources"][0]["sha256"] == sha256_file(squad)


def test_processes_write_the_same_files(tokenizer: Path, tmp_path: Path) -> None:
    words = ("--task", "vt,qa_2,niah_single_2", "--length", "3k,6k")
    assert run(made(tokenizer, tmp_path / "one", *words)) == 0
    assert run(made(tokenizer, tmp_path / "two", *words, "--workers", "2")) == 0
    files = sorted(
        path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jsonl")
    )
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_length_too_short_for_one_task_leaves_the_others(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(made(tokenizer, out, "--task", "vt,qa_2", "--length", "1500")) == 1
    error = capsys.readouterr().err
    assert "qa_2 at length 1500 cannot hold its fixed parts: it needs at least" in error
    assert "1 of 2 files not written" in error
    assert [path.name for path in out.rglob("*.jsonl")] == ["vt.jsonl"]


def test_a_folder_is_scored_over_tasks_and_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, right in ((4096, 10), (8192, 4)):
        folder = tmp_path / "P" / str(length)
        folder.mkdir(parents=True)
        for task in TASKS:
            rows = [{"pred": "x" * (n < right), "outputs": ["x"]} for n in range(10)]
            (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "S.json"
    command = ["eval", "score", "ruler", "--predictions", str(tmp_path / "P"), "--json", str(out)]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert "average 70.0, rising weights 60.0, falling weights 80.0" in shown.out
    assert "effective length 4096" in shown.out
    assert "8192 (target)" in shown.out
    assert "hides the target: 40.0 at 8192" in shown.err
    summary = json.loads(out.read_text())["averages"]
    assert summary["effective"] == 4096
    assert len(json.loads(out.read_text())["scores"]) == 26
    assert records.read(out, Scores).suite == "ruler"
    assert run([*command, "--length", "4096", "--task", "vt"]) == 0
    assert run(["eval", "score", "ruler", "--predictions", str(tmp_path / "none")]) == 1
    assert "no predictions in" in capsys.readouterr().err


def test_mistakes_are_one_line(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "F.jsonl"
    assert run(made(tokenizer, out, "--task", "niah_singel_1", "--length", "4096")) == 1
    assert "did you mean 'niah_single_1'" in capsys.readouterr().err
    assert run(made(tokenizer, out, "--task", "vt", "--length", "four")) == 1
    assert run(made(tmp_path / "nowhere", out, "--task", "vt", "--length", "4096")) == 1
    assert run(made(tokenizer, out, "--task", "vt", "--length", "4k", "--template", "chat")) == 1
    assert run(made(tokenizer, tmp_path, "--task", "vt", "--length", "4k", "--force")) == 1
    (tmp_path / "P.jsonl").write_text("{}\n")
    score = ["eval", "score", "ruler", "--predictions", str(tmp_path / "P.jsonl")]
    assert run([*score, "--task", "vt"]) == 1
    assert run(score) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6
    assert all(line.startswith("endprompt: ") for line in errors)
    assert not out.exists()
