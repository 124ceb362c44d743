"""Suites of `eval run` as part of a run: which are asked, of whom, and where their scores go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endprompt.cli.app import run
from endprompt.cost.plan import SIZES
from endprompt.errors import EndPromptError
from endprompt.eval import ruler, untaught
from endprompt.extension import suites
from endprompt.extension.suites import RunSuite

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_suites_are_named_with_their_tasks_and_lengths() -> None:
    asked = suites.parse(
        "ruler:vt+cwe@8k+64k,longbench:qasper,untaught,short:mmlu", {"samples": 5, "depths": 4}
    )
    first, long, rest, short = (suite.config for suite in asked)
    assert (first.ruler_tasks, first.lengths, first.samples) == (("vt", "cwe"), (8192, 65536), 5)
    assert long.datasets == ("qasper",)
    assert rest.tasks == tuple(untaught.TASKS)
    assert len(rest.depths) == 4
    assert short.short == ("mmlu",)
    assert suites.parse("none") == ()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("rulr", {}, r"no suite 'rulr' \(did you mean 'ruler'\?\): one of ruler, needle"),
        ("ruler:vtt", {}, r"unknown RULER task 'vtt'|no RULER task 'vtt'|'vtt'.*did you mean"),
        ("ruler@many", {}, "'many' is no number of tokens"),
        ("ruler:", {}, "--eval ruler:: nothing after the sign"),
        ("needle:deep", {}, "needle has no tasks to choose among"),
        ("untaught:json", {}, r"no task 'json' \(did you mean 'json-kv'\?\) of untaught"),
        ("ruler:vt,ruler:cwe", {}, "--eval names ruler twice: write its tasks and lengths togeth"),
        (" , ", {}, "--eval names no suite"),
        ("ruler", {"sampels": 5}, r"unknown key 'sampels' \(did you mean 'samples'\?\)"),
        ("ruler", {"samples": 0}, "samples: "),
        ("ruler", {"server": "http://here"}, "--eval-set server: the run decides it"),
        ("longbench", {"longbench": "nowhere"}, "no such file or folder: nowhere"),
    ],
)
def test_what_no_suite_can_be_asked_is_refused(
    text: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EndPromptError, match=message):
        suites.parse(text, settings)


def test_settings_without_suites_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extend", "--eval-set", "samples=5"]) == 1
    assert "--eval-set is for the suites of --eval: name them too" in capsys.readouterr().err


def chosen(asked: tuple[RunSuite, ...] | None, model: str, **more: Any) -> list[RunSuite]:
    size = SIZES[model]
    known = {"window": size.window, "target": 65536, "for_gpus": True, "training": 0.0} | more
    return suites.chosen(asked, decoder=size.decoder, **known)


def test_ruler_is_asked_of_itself_where_gpus_make_it_cheap() -> None:
    (usual,) = chosen(None, "smollm2-135m")
    assert usual.config.ruler_tasks == tuple(ruler.TASKS)
    assert usual.config.lengths == (8192, 65536)
    assert chosen(None, "smollm2-135m", for_gpus=False) == []
    assert chosen(None, "llama-3-70b") == [], "hours beside a training of nothing"
    assert chosen(None, "llama-3-70b", training=1e22), "little beside a long training"


def test_lengths_are_window_and_target_and_none_is_past_it() -> None:
    first, long = chosen(suites.parse("passkey,longbench"), "llama-3-8b")
    assert first.config.lengths == (8192, 65536)
    assert long.config.lengths == (65536,)
    with pytest.raises(EndPromptError, match="131072 tokens are past the target of 65536 tokens"):
        chosen(suites.parse("ruler@8k+128k"), "llama-3-8b")


def test_other_questions_have_another_folder() -> None:
    keys = [suites.parse("ruler@8k", {"samples": n})[0].key for n in (5, 5, 6)]
    assert keys[0] == keys[1] != keys[2]


def test_every_arm_is_asked_and_scores_stand_in_record_and_report(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = endprompt(
        "extend", tiny, "--text", text, "--to", 2048, "--lengths", "1024,2048", "--needles", 2,
        "--method", "pi", "--eval", "ruler:niah_single_1@1k+2k", "--eval-set", "samples=1",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "suites   ruler (1 prompts at 1,024, 2,048 tokens) for each arm" in done.stdout
    assert "RULER, average over tasks" in done.stdout
    for arm in json.loads((out / "run.json").read_text())["arms"]:
        scores = arm["evaluation"]["suites"]["ruler"]
        assert set(scores["by_length"]) == {"1024", "2048"}
        assert scores["tasks"]["niah_single_1"]["2048"]["values"] == [0.0], "it learnt nothing"
    assert "RULER, task by task" in (out / "report.html").read_text()


def test_data_that_cannot_be_had_is_said_before_a_job_runs(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = endprompt(
        "extend", tiny, "--text", text, "--to", 2048, "--lengths", "1024,2048", "--needles", 2,
        "--method", "pi", "--eval", "longbench:qasper", "--out", tmp_path / "out",
        "--eval-set", f"longbench={tmp_path / 'empty'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert f"--eval longbench: no qasper.jsonl in {tmp_path / 'empty'}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out/doctor.json").exists()
