"""The verbs under `eval`, driven as a user drives them, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_harness import CHOICE
from test_server import Fake, good, status
from test_window import document
from tiny_lm import tiny_engine, tiny_tokenizer

from endprompt.cli.app import run
from endprompt.cli.eval_needle import draw
from endprompt.eval.needle import NeedleGrid
from endprompt.eval.perplexity import perplexity
from endprompt.eval.scores import Scores
from endprompt.io import records, result_files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    engine = tiny_engine()
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(tiny_tokenizer().decode(document(0)))
    return str(path)


def command(*words: object) -> int:
    return run(["eval", *map(str, words)])


def test_perplexity_prints_and_writes_what_the_function_gives(model, tmp_path, capsys):
    ids = np.asarray(document(1)[:300], dtype=np.uint16)
    ids.tofile(tmp_path / "t.bin")
    out = tmp_path / "o.json"
    given = ["perplexity", model, "--tokens", tmp_path / "t.bin", "--window", 64, "--stride", 16]
    # "auto" is half precision on some machines
    given += ["--dtype", "float32", "--definition", "strided", "--json", out]
    assert command(*given) == 0
    written = json.loads(out.read_text())
    expected = perplexity(tiny_engine(), tmp_path / "t.bin", windows=[64], stride=16)
    assert written["nats_per_token"] == pytest.approx(expected.nats_per_token, abs=1e-6)
    assert written["definition"] == "strided"
    assert written["bits_per_byte"] > 0
    assert f"{expected.nll_sum:.3f}" in capsys.readouterr().out
    assert command(*given) == 1
    assert "give --force" in capsys.readouterr().err
    assert command(*given, "--force") == 0
    again = json.loads(out.read_text())
    assert {**again, "created": None} == {**written, "created": None}
    assert command(*given[:-4], "--definition", "stride") == 1
    assert "did you mean 'strided'?" in capsys.readouterr().err


def test_needle_writes_its_grid_and_its_figure_the_same_twice(model, text, tmp_path, capsys):
    given = ["needle", model, "--lengths", "400,800", "--depths", "0,0.5,1", "--text", text]
    for name in ("a", "b"):
        more = ["--json", tmp_path / f"{name}.json", "--figure", tmp_path / f"{name}.svg"]
        assert command(*given, *more) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert command(*given, *more) == 1, "both files are there"
    assert command(*given, *more, "--force") == 0
    grid, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert {**grid, "created": None} == {**again, "created": None}
    assert len(grid["scores"]) == 6
    assert "400 tokens" in capsys.readouterr().out
    assert command(*given[:-2], "--lengths", "4m", "--figure", tmp_path / "c.svg") == 1
    assert "are needed" in capsys.readouterr().err
    assert not (tmp_path / "c.svg").exists()


def test_a_figure_can_be_a_png(tmp_path):
    scores = [
        {
            "document": 0, "length": 10, "key": "k", "answer": "1", "position": 1, "depth": 0.1,
            "tokens": 1, "nll": 1.0, "nll_per_token": 1.0, "digits_right": 0.5, "hit": True,
        }
    ]  # fmt: skip
    grid = NeedleGrid.model_validate(
        {
            "lengths": [10],
            "depths": [0.1],
            "seed": 0,
            "documents": 1,
            "scores": scores,
            "computation": tiny_engine().computation,
        }
    )
    draw(grid, "title", tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes()[1:4] == b"PNG"
    result_files.require_replaceable(tmp_path / "g.png", "eval needle", force=True)


def test_longbench_prompts_are_written_answered_and_scored(model, tmp_path, capsys):
    rows = [
        {"context": f"old stones {n} " * 40, "input": "where?", "answers": ["a river"], "length": 9}
        for n in range(3)
    ]
    file = tmp_path / "qasper_e.jsonl"
    file.write_text("".join(json.dumps({**row, "all_classes": None}) + "\n" for row in rows))
    out = tmp_path / "prompts.jsonl"
    given = ["data", "longbench", "--dataset", "qasper_e", "--file", file, "--tokenizer", model]
    for force, code in (([], 0), ([], 1), (["--force"], 0)):
        assert command(*given, "--max-length", "300", "--out", out, *force) == code
    prompts = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(prompts) == 3
    assert all(len(tiny_tokenizer()(row["prompt"])["input_ids"]) <= 304 for row in prompts)
    assert prompts[0]["prompt"].startswith("You are given a scientific article")
    assert "where?" in prompts[0]["prompt"]
    predictions = tmp_path / "pred.jsonl"
    predictions.write_text(
        "".join(
            json.dumps({**row, "pred": answer}) + "\n"
            for row, answer in zip(prompts, ["A river.", "river", "?"], strict=True)
        )
    )
    scored = ["score", "longbench", "--dataset", "qasper_e", "--predictions", predictions]
    assert command(*scored, "--json", tmp_path / "s.json") == 0
    result = json.loads((tmp_path / "s.json").read_text())
    (row,) = result["scores"]
    assert (row["task"], row["score"]) == ("qasper_e", 66.67)
    assert row["detail"]["by_length"] == {"0-4k": 66.67, "4-8k": None, "8k+": None}
    assert records.read(tmp_path / "s.json", Scores).suite == "longbench"
    shown = capsys.readouterr().out
    assert "average over data sets 66.67" in shown
    assert "average over categories 66.67" in shown


def test_a_run_repeats_itself_and_compares_with_another(model, text, tmp_path, capsys):
    tasks = ["--tasks", "needle,passkey", "--lengths", "600", "--depths", "2", "--text", text]
    for name in ("a", "b"):
        assert command("run", model, *tasks, "--out", tmp_path / name) == 0
    for task in ("needle", "passkey"):
        for file in ("samples.jsonl", "summary.json"):
            first, second = (tmp_path / name / task / file for name in ("a", "b"))
            assert first.read_bytes() == second.read_bytes()
    assert command("run", model, *tasks, "--out", tmp_path / "a", "--seed", "1") == 1
    assert "holds a run with another seed" in capsys.readouterr().err
    assert command("compare", tmp_path / "a" / "needle", tmp_path / "b" / "needle") == 0
    assert "+0.000" in capsys.readouterr().out
    assert command("run", model, "--tasks", "rulr", "--out", tmp_path / "c") == 1
    assert "did you mean 'ruler'?" in capsys.readouterr().err


@pytest.mark.parametrize("harmed", ["model.safetensors", "tokenizer.json", "config.json"])
def test_answers_of_other_weights_at_the_same_path_are_not_taken(harmed, model, tmp_path, capsys):
    copy = shutil.copytree(model, tmp_path / "model")
    words = ["run", copy, "--tasks", "passkey", "--lengths", "300", "--depths", "1"]
    assert command(*words, "--out", tmp_path / "a") == 0
    assert command(*words, "--out", tmp_path / "a") == 0
    content = (copy / harmed).read_bytes()
    if harmed.endswith("json"):
        (copy / harmed).write_bytes(content + b" ")
    else:
        (copy / harmed).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    assert command(*words, "--out", tmp_path / "a") == 1
    digest = {"model.safetensors": "weights", "tokenizer.json": "tokenizer"}.get(harmed, "config")
    assert f"holds a run with another {digest}_digest: choose" in capsys.readouterr().err


def test_ruler_runs_on_a_checkpoint_and_says_what_is_not_comparable(model, tmp_path, capsys):
    given = ["run", model, "--tasks", "ruler", "--ruler-tasks", "vt,qa_1", "--lengths", "2000"]
    assert command(*given, "--samples", "1", "--out", tmp_path / "r") == 0
    shown = capsys.readouterr().out
    assert "ruler: 2 prompts, 4,000 tokens, about " in shown.splitlines()[0]
    assert "qa_1: squad is" in shown
    assert "not comparable with published RULER" in shown
    assert "2000 tokens (target): average" in shown
    summary = json.loads((tmp_path / "r" / "ruler" / "summary.json").read_text())
    assert summary["answered"] == 2


def test_a_ruler_task_too_long_for_a_length_is_left_out_and_named(model, tmp_path, capsys):
    given = ["run", model, "--tasks", "ruler", "--lengths", "2000", "--samples", "1"]
    assert command(*given, "--ruler-tasks", "vt,qa_2", "--out", tmp_path / "r") == 0
    assert "some samples left out: qa_2 at length 2000 cannot hold" in capsys.readouterr().out
    assert command(*given, "--ruler-tasks", "qa_2", "--out", tmp_path / "none") == 1
    assert "qa_2 at length 2000 cannot hold its fixed parts" in capsys.readouterr().err


def test_a_failing_server_ends_with_code_1_and_the_same_command_mends_it(model, tmp_path, capsys):
    fake = Fake()
    fake.replies = [status(500)] * 2 + [good("the key is 12345")]
    given = ["run", "served", "--server", fake.url, "--tokenizer", model, "--tasks", "passkey"]
    given += ["--lengths", "600", "--depths", "3", "--tries", "1", "--workers", "1"]
    assert command(*given, "--out", tmp_path / "r") == 1
    shown = capsys.readouterr()
    assert "2 samples got no answer and are not in the scores" in shown.err
    assert "status 500 2" in shown.out
    summary = json.loads((tmp_path / "r" / "passkey" / "summary.json").read_text())
    assert (summary["answered"], summary["failed"], len(summary["cells"])) == (1, 2, 1)
    assert command(*given, "--out", tmp_path / "r") == 0
    assert len(fake.requests) == 5
    fake.server.shutdown()


def test_short_tasks_go_through_lm_eval_and_are_kept(model, tmp_path, capsys, monkeypatch):
    rows = [{"question": f"people walk {n}", "answer": n % 3} for n in range(4)]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choice.yaml").write_text(CHOICE.format(path=data))
    given = ["run", model, "--tasks", "short", "--short", "local_choice", "--samples", "3"]
    given += ["--include", tmp_path / "tasks", "--out", tmp_path / "r"]
    assert command(*given) == 0
    kept = tmp_path / "r" / "short" / "local_choice.jsonl"
    assert len(kept.read_text().splitlines()) == 3
    monkeypatch.setattr("endprompt.eval.harness.run_tasks", lambda *_a, **_k: pytest.fail("again"))
    assert command(*given) == 0
    assert "acc" in capsys.readouterr().out


def test_the_folder_of_tasks_is_printed_for_include_path(capsys):
    assert command("tasks-path") == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "ruler.yaml").is_file()
