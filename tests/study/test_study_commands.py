"""The commands of real scales: the paper's protocol to the word, equal arms once, results read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from endprompt.cli.app import SECTIONS, run
from endprompt.errors import EvaluationError
from endprompt.eval.results import Sample
from endprompt.eval.ruler.tasks import TASKS
from endprompt.study import commands, definition
from endprompt.study.commands import Commands


def every(out: Path) -> Commands:
    return Commands([definition.load(name) for name in definition.names()], out)


def test_the_paper_s_protocol_is_in_its_recipes(tmp_path: Path) -> None:
    made = every(tmp_path)
    made.write_recipes()
    study = definition.load("ablations")
    plain = made.recipe(study.arms["endprompt"]).resolve(window=8192, target=65536, gpu=True)
    amounts, training = plain.amounts, plain.training
    assert (amounts.row_tokens, amounts.rows_per_step) == (8192, 64)
    assert amounts.tokens == pytest.approx(10**9, rel=1e-3)
    assert (training.learning_rate, training.warmup_steps) == (2e-5, 20)
    assert (training.schedule, training.weight_decay) == ("constant_with_warmup", 0.0)
    assert (training.trainable, training.dtype, plain.rope.scaling) == ("all", "bfloat16", "pi")
    mistral = made.recipe(study.arms["mistral-7b"]).resolve(window=32768, target=65536, gpu=True)
    assert mistral.amounts.row_tokens == 8192
    full = made.recipe(definition.load("ruler").arms["full"])
    assert full.resolve(window=8192, target=65536, gpu=True).amounts.row_tokens == 65536
    files = list((tmp_path / "recipes").glob("*.yaml"))
    studies = [definition.load(name) for name in definition.names()]
    arms = [arm for study in studies for arm in study.arms_at("paper").values()]
    assert {file.stem for file in files} == {made.folder(arm) for arm in arms}
    assert all(yaml.safe_load(file.read_text())["training"]["tokens"] for file in files)


def test_commands_are_verbs_of_ours_each_once(tmp_path: Path) -> None:
    found = every(tmp_path).commands()
    assert len({command.result for command in found}) == len(found)
    known = {verb for verbs in SECTIONS.values() for verb in verbs}
    for command in found:
        assert command.arguments[0] in known
        assert shlex.split(command.line)[-len(command.arguments) :] == command.arguments
        assert command.many == (command.arguments[0] in ("train", "sft"))
    trained = [c for c in found if c.arguments[0] == "train"]
    arms = sum(len(definition.load(n).arms_at("paper")) for n in definition.names())
    assert 10 < len(trained) < arms


def test_a_nearer_command_comes_first_and_a_failure_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Commands([definition.load("cues")], tmp_path)
    seen = []

    class Done:
        returncode = 0

    def fake(words: list[str], env: object) -> Done:
        command = next(c for c in made.commands() if words[-len(c.arguments) :] == c.arguments)
        seen.append(command.arguments[0])
        if len(seen) > 2:
            Done.returncode = 3
        command.result.parent.mkdir(parents=True, exist_ok=True)
        command.result.write_text("{}")
        return Done()

    monkeypatch.setattr(commands.subprocess, "run", fake)
    with pytest.raises(EvaluationError, match="failed with code 3"):
        made.run(lambda *_: None)
    assert seen == ["prepare", "train", "train"]
    assert sum(command.done for command in made.commands()) == 3


def test_scores_are_read_by_task_and_length(tmp_path: Path) -> None:
    study = definition.load("cues")
    made, arm = Commands([study], tmp_path), study.arms["ep3"]
    folder = tmp_path / "scores" / made.folder(arm) / "ruler" / "ruler"
    folder.mkdir(parents=True)
    lines = [
        Sample(id=f"{task}{n}{i}", task=f"ruler/{task}", length=n, prompt_sha256="x",
               prediction="p", references=(), scores={"score": 0.25}).model_dump_json()
        for task in TASKS for n in (4096, 65536) for i in range(2)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    found = made.values(study, arm, study.measures[0])
    assert set(found) == {0.5, "target"}
    assert len(found["target"].bases[0]) == len(TASKS)
    assert np.mean(found[0.5].bases[0]) == 25.0
    assert made.values(study, study.arms["ep2"], study.measures[0]) == {}


def test_cost_is_read_from_the_training_s_record(tmp_path: Path) -> None:
    study = definition.load("cost")
    made, arm = Commands([study], tmp_path), study.arms["full"]
    run_folder = tmp_path / "runs" / made.folder(arm)
    run_folder.mkdir(parents=True)
    record = {"seconds": 20.0, "flops": 4e3, "tokens": 10, "peak_memory_bytes": 5 * 10**9}
    record |= {"recipe": {}, "target": 64, "curve": [], "resumed_at": []}
    (run_folder / "train.json").write_text(json.dumps(record))
    read = [float(made.values(study, arm, one)["target"].bases[0][0][0]) for one in study.measures]
    assert read == [2.0, 400.0, 5.0]


def test_a_dry_run_prints_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "short-tasks", "--scale", "paper", "--dry-run", "--out", str(tmp_path)]
    assert run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].count("accelerate") == 14
    assert any("-m endprompt sft " in line for line in lines)
