"""Who runs where: processes of a training, jobs side by side, commands for a scheduler."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from endprompt import recipe as recipes
from endprompt.cost.memory import GIB
from endprompt.cost.plan import SIZES
from endprompt.errors import RecipeError
from endprompt.extension import devices, plan
from endprompt.extension.prepare import Request

pytestmark = pytest.mark.xdist_group("devices")  # one worker makes the shared run
Run = Callable[..., subprocess.CompletedProcess[str]]
EIGHT = devices.Devices(tuple("01234567"), 8, 2)
WORDS = (
    "--to", 2048, "--lengths", "1024,2048", "--needles", 2, "--set", "rows.tokens=128",
    "--set", "rows.kinds.0.terminal.recall={verbatim: 1}", "--set", "training.tokens=7680",
    "--set", "training.tokens_per_step=256", "--set", "training.save_steps=3",
)  # fmt: skip


def ranks(
    out: Path, name: str, model: str, *, at: devices.Devices = EIGHT, trainings: int = 3,
    settings: dict[str, Any] | None = None, target: int = 65536,
) -> devices.Ranks:  # fmt: skip
    size = SIZES[model]
    recipe = recipes.load(name).replace({"training.gradient_checkpointing": True})
    recipe = recipe.replace(settings or {}).resolve(window=size.window, target=target, gpu=True)
    return devices.ranks_of(
        at, recipe, size.decoder, trainings=trainings, gpu_bytes=79 * GIB, out=out,
        cuttable=devices.cut_allowed(recipe, None),
    )  # fmt: skip


def test_weights_that_fit_are_on_every_gpu_and_others_are_sharded(tmp_path: Path) -> None:
    small = ranks(tmp_path, "pose", "smollm2-135m")
    assert (small.processes, small.engine) == (8, devices.DDP)
    assert small.options() == ["--processes", "8"]
    large = ranks(tmp_path, "pose", "llama-3-8b")
    assert (large.processes, large.engine) == (8, devices.SHARDED)
    config = tmp_path / devices.FILE
    assert large.options() == ["--accelerate-config", str(config)]
    values = yaml.safe_load(config.read_text())
    assert (values["distributed_type"], values["num_processes"]) == ("FSDP", 8)
    assert values["mixed_precision"] == "bf16"


def test_rows_of_the_target_are_cut_among_the_gpus(tmp_path: Path) -> None:
    few = {"training.tokens_per_step": 131072}
    cut = ranks(tmp_path, "full", "llama-3-8b", settings=few, target=131072)
    assert (cut.processes, cut.engine) == (8, devices.ROWS_CUT)
    values = yaml.safe_load((tmp_path / devices.FILE).read_text())
    assert values["parallelism_config"]["parallelism_config_cp_size"] == 8
    apart = few | {"training.attention": "shifted"}
    whole = ranks(tmp_path, "full", "llama-3-8b", settings=apart, target=131072)
    assert whole.processes == 1, "shifted attention can't be cut, and a step is one row"


def test_trainings_whose_step_fits_in_one_pass_run_side_by_side(tmp_path: Path) -> None:
    step = {"rows.tokens": 1024, "training.tokens_per_step": 16 * 1024}
    assert ranks(tmp_path, "pose", "smollm2-135m", settings=step).processes == 2
    assert ranks(tmp_path, "pose", "smollm2-135m", settings=step, trainings=1).processes == 8
    asked = devices.Devices(EIGHT.gpus, 8, 2, processes=4)
    assert ranks(tmp_path, "pose", "smollm2-135m", settings=step, at=asked).processes == 4


def test_as_many_gpus_train_as_the_rows_of_a_step_divide_among(tmp_path: Path) -> None:
    step = {"training.tokens_per_step": 12 * 8192}
    assert ranks(tmp_path, "pose", "llama-3-8b", settings=step).processes == 6
    asked = devices.Devices(EIGHT.gpus, 8, 2, processes=8)
    with pytest.raises(RecipeError, match="12 rows a step do not divide among 8 processes"):
        ranks(tmp_path, "pose", "llama-3-8b", settings=step, at=asked)


def test_the_users_gpus_are_those_that_jobs_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.Path, "exists", lambda _: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices.here(None, None).gpus == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert devices.here(None, None).gpus == ("5", "7")
    with pytest.raises(RecipeError, match=r"3 processes, and this machine has 2 GPU\(s\)"):
        devices.here(3, None)


def test_the_plan_says_who_runs_where() -> None:
    two = devices.Ranks(2, engine=devices.DDP)
    assert devices.in_words(EIGHT, two, 3) == (
        "8 GPU(s): each training in 2 processes (DDP), 3 at once; evaluations one to a GPU, "
        "8 at once; 2 thread(s) a process"
    )


def config(folder: Path, **values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "MULTI_CPU", "num_processes": 2} | values))
    return path


@pytest.mark.parametrize(
    ("processes", "values", "message"),
    [
        (3, None, r"2 rows a step do not divide among 3 processes: set training\.tokens_per_step"),
        (None, {"distributed_type": "FSDP"}, r"config\.yaml is of type FSDP, and .* has no GPU"),
        (None, {"num_machines": 2}, r"config\.yaml names 2 machines: --dry-run prints the command"),
    ],
)
def test_what_this_machine_cannot_start_is_refused_before_a_job_runs(
    processes: int | None, values: dict[str, Any] | None, message: str,
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path,
) -> None:  # fmt: skip
    more = ["--processes", processes] if processes else []
    more += ["--accelerate-config", config(tmp_path, **values)] if values else []
    done = endprompt("extend", tiny, "--text", text, *WORDS, *more, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out/doctor.json").exists()


def test_on_several_machines_each_is_given_its_number(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    path = config(tmp_path, distributed_type="FSDP", num_processes=16, num_machines=2)
    words = ("--accelerate-config", path, "--out", tmp_path / "out", "--dry-run")
    done = endprompt("extend", tiny, "--text", text, *WORDS[:-4],
                     "--set", "training.tokens_per_step=2048", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert [line.split(" ")[0] for line in lines[:2]] == ["set", "cd"]
    training = next(line for line in lines if " train " in line)
    assert f'accelerate launch --config_file {path} --machine_rank "$MACHINE_RANK"' in training
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["training"]["dtype"] == (
        "bfloat16"
    ), "the recipe is resolved for the GPUs that it runs on"
    assert lines[-1].startswith("endprompt extend ")
    assert "--dry-run" not in lines[-1]
    assert not (tmp_path / "out/doctor.json").exists()


def test_a_run_that_is_given_again_keeps_the_precision_that_was_chosen_for_it(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("recall-anchors").replace(
        {"training.dtype": "fast", "rows.tokens": 128, "rows.kinds.0.terminal.recall.verbatim": 1}
    )
    request = Request(
        model=str(tiny), target=2048, text=[str(text)], recipe=recipe, out=tmp_path / "out",
        lengths=[1024, 2048], needles=2,
    )  # fmt: skip
    for fast in (True, False):
        monkeypatch.setattr("endprompt.models.precision.fast_in_bf16", lambda _, fast=fast: fast)
        plan.commands(request, say=lambda *_: None)
        values = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
        assert values["training"]["dtype"] == "bfloat16"


@pytest.fixture(scope="module")
def whole(tiny: Path, text: Path, endprompt: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose training is one process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = endprompt("extend", tiny, "--text", text, *WORDS, "--out", out)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


def must_equal(out: Path, whole: Path) -> None:
    """The same losses, weights, evaluations and tables, within float32."""
    run, expected = (json.loads((at / "run.json").read_text()) for at in (out, whole))
    name = expected["recipe"]["name"]
    assert run["recipe_hash"] == expected["recipe_hash"]
    for arm, other in zip(run["arms"], expected["arms"], strict=True):
        assert [at["loss"] for at in arm["curve"]] == pytest.approx(
            [at["loss"] for at in other["curve"]], rel=1e-5
        )
        assert _numbers(arm["evaluation"]) == pytest.approx(_numbers(other["evaluation"]), abs=1e-3)
    weights = [load_file(at / "arms" / name / "model/model.safetensors") for at in (out, whole)]
    for key, weight in weights[1].items():
        assert (weights[0][key] - weight).abs().max() < 1e-5, key
    pages = [(at / "report.html").read_text() for at in (out, whole)]
    headings = [re.findall(r"<(?:h2|caption)[^>]*>(.*?)</", page) for page in pages]
    assert headings[0] == headings[1]


def _numbers(value: Any) -> list[float]:
    """Every number of an evaluation, but for how long it took and how it was computed."""
    if isinstance(value, dict):
        apart = ("computation", "seconds", "peak_memory_gib")
        return [n for key in sorted(value) if key not in apart for n in _numbers(value[key])]
    if isinstance(value, list):
        return [n for inner in value for n in _numbers(inner)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
def test_printed_commands_run_by_hand_leave_nothing_but_the_report(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path, whole: Path
) -> None:
    words = ("extend", tiny, "--text", text, *WORDS, "--out", tmp_path / "run")
    words += ("--accelerate-config", config(tmp_path))
    dry = endprompt(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    jobs, _, _ = dry.stdout.partition("# report, after all of these")
    program = tmp_path / "endprompt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m endprompt "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", jobs], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run/run.json").exists()
    report = endprompt(*words)
    assert report.returncode == 0, report.stderr
    assert "each training in 2 processes (MULTI_CPU of config.yaml)" in report.stdout
    (line,) = re.findall("done already: (.*)", report.stdout)
    assert line.count("evaluate") == 3
    assert line.count("train ") == 1
    assert not list((tmp_path / "run/jobs").glob("*.log")), "no job was run again"
    must_equal(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_in_one_line_and_the_same_command_resumes(
    tiny: Path, text: Path, endprompt: Run, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    words = ("extend", tiny, "--text", text, *WORDS, "--processes", 2, "--out", out)
    shown = out / f"jobs/train-{recipes.DEFAULT}.progress.json"
    child = subprocess.Popen(
        [sys.executable, "-m", "endprompt", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while child.poll() is None and not _reached(shown, 5):
        time.sleep(0.02)
    family = psutil.Process(child.pid).children(recursive=True)
    (second,) = (one for one in family if one.environ().get("RANK") == "1")
    began = time.monotonic()
    second.send_signal(signal.SIGKILL)
    output, errors = child.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert child.returncode == 1
    assert errors.startswith(f"endprompt: rank 1 of 2 (process {second.pid}) was killed by SIGKILL")
    assert errors.count("\n") == 1
    assert "each training in 2 processes (DDP by gloo)" in output
    assert not any(one.is_running() for one in family)
    again = endprompt(*words)
    assert again.returncode == 0, again.stderr
    trained = json.loads((out / f"arms/{recipes.DEFAULT}/train.json").read_text())
    assert trained["resumed_at"][0] >= 3
    must_equal(out, whole)


def _reached(shown: Path, step: int) -> bool:
    try:
        return json.loads(shown.read_text())["done"] >= step
    except (OSError, ValueError):
        return False
