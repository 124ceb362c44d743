"""`endprompt train --processes`: ranks of one command, which end together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from endprompt.errors import RecipeError
from endprompt.io.files import sha256_file
from endprompt.train import launch
from tiny_checkpoint import RECALL_POSE

Run = Callable[..., subprocess.CompletedProcess[str]]


def failed(code: int, message: Any = "", timestamp: int = 1) -> Any:
    """As torch keeps a rank that failed."""
    return SimpleNamespace(exitcode=code, pid=7, message=message, timestamp=timestamp)


def said(kind: str, text: str) -> dict[str, Any]:
    return {"message": f"{kind}: {text}", "extraInfo": {"py_callstack": "Traceback: here\n"}}


@pytest.mark.parametrize(
    ("failures", "line"),
    [
        pytest.param(
            {0: failed(1, said("RuntimeError", "peer")), 1: failed(-9, "Signal 9", 2)},
            "rank 1 of 3 (process 7) was killed by SIGKILL, and the others were ended: give the "
            "same command again to resume",
            id="killed",
        ),
        pytest.param(
            {0: failed(-15), 2: failed(1, said("TrainingError", "loss is nan: at step 3"), 2)},
            "loss is nan: at step 3 (rank 2 of 3)",
            id="in-words",
        ),
        pytest.param(
            {0: failed(-15), 1: failed(1, said("KeyError", "'weights'"))},
            "rank 1 of 3 (process 7) failed with code 1, and the others were ended: its error "
            "stands above",
            id="fault",
        ),
    ],
)
def test_the_rank_that_failed_first_is_named(
    failures: dict[int, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.failure(failures, 3) == line
    assert capsys.readouterr().err == ("Traceback: here\n" if "stands above" in line else "")


CONFIGS = {
    "absent": (None, r"no Accelerate config file .*absent.yaml"),
    "a-list": ("- 1\n", r"holds no settings"),
    "no-number": ("num_processes: many\n", r"num_processes many and num_machines 1 have to be"),
    "uneven": ("num_processes: 3\nnum_machines: 2\n", r"3 processes do not divide among 2 machine"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    text, message = CONFIGS[name]
    if text is not None:
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        launch.read_config(tmp_path / f"{name}.yaml")


def test_ranks_without_a_device_are_refused(tmp_path: Path) -> None:
    launch.require_devices(4, 0)
    with pytest.raises(RecipeError, match=r"4 processes, and this machine has 2 GPU\(s\)"):
        launch.require_devices(4, 2)
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\n")
    config = launch.read_config(tmp_path / "fsdp.yaml")
    with pytest.raises(RecipeError, match=r"fsdp.yaml is of type FSDP, and .* has no GPU"):
        launch.require_devices(2, 0, config)


@pytest.fixture(scope="module")
def words(tiny: Path, text: Path, endprompt: Run, tmp_path_factory: pytest.TempPathFactory) -> list:
    """A training of 40 steps in two processes, but for its folder."""
    data = tmp_path_factory.mktemp("ranks") / "data"
    done = endprompt("prepare", text, "--tokenizer", tiny, "--out", data)
    assert done.returncode == 0, done.stderr
    settings = {
        "rows.kinds.1.terminal.recall": "{verbatim: 2}", "rows.tokens": 128,
        "training.tokens": 128 * 2 * 40, "training.tokens_per_step": 256, "training.save_steps": 3,
    }  # fmt: skip
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", RECALL_POSE, "--model", tiny, "--data", data, "--to", "512", *sets,
            "--processes", "2"]  # fmt: skip


def test_rows_that_do_not_divide_among_processes_are_refused_in_one_line(
    words: list, endprompt: Run, tmp_path: Path
) -> None:
    done = endprompt(*words, "--processes", 3, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("endprompt: 2 rows a step do not divide among 3 processes: set ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_in_one_line_and_the_same_command_resumes(
    words: list, endprompt: Run, tmp_path: Path
) -> None:
    whole = endprompt(*words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("step 40/40") == 1, "one rank speaks"
    out, shown = tmp_path / "out", tmp_path / "shown.json"
    child = subprocess.Popen(
        [sys.executable, "-m", "endprompt", *map(str, words), "--out", out, "--progress", shown],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while child.poll() is None and not _reached(shown, 7):
        time.sleep(0.02)
    ranks = psutil.Process(child.pid).children()
    assert len(ranks) == 2
    (second,) = (rank for rank in ranks if rank.environ()["RANK"] == "1")
    began = time.monotonic()
    second.send_signal(signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    assert time.monotonic() - began < 60
    lines = [line for line in errors.splitlines() if not line.startswith("[rank")]
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"endprompt: rank 1 of 2 (process {second.pid}) was killed by SIGKI")
    assert not any(rank.is_running() for rank in ranks)
    again = endprompt(*words, "--out", out)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "train.json").read_text())["resumed_at"][0] >= 3
    weights = "model/model.safetensors"
    assert sha256_file(out / weights) == sha256_file(tmp_path / "whole" / weights)


def _reached(shown: Path, step: int) -> bool:
    try:
        return json.loads(shown.read_text())["done"] >= step
    except (OSError, ValueError):
        return False
