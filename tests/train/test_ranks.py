"""Several processes: the same rows, curve and weights as one; faults end all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
SETTINGS = {
    "rows.kinds.1.terminal.recall": {"quotes": 2},
    "rows.tokens": 128,
    "training.tokens": 128 * 2 * 6,
    "training.tokens_per_step": 256,
    "training.learning_rate": 1e-3,
    "training.save_steps": 2,
}


def ranks(count: int, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in `count` processes, as `torchrun` does."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
         str(count), str(HERE / script), *map(str, words)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def train(
    count: int, tiny: Path, folder: Path, name: str, **orders: Any
) -> subprocess.CompletedProcess[str]:
    """Train in `count` ranks under `folder/name`."""
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({"model": str(tiny), "out": str(folder / name), "settings": SETTINGS} | orders)
    )
    return ranks(count, "ranks_child.py", path)


def curve(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "train.json").read_text())["curve"]]


def test_two_ranks_see_each_row_once_and_end_as_one_rank_does(tiny: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        done = train(count, tiny, tmp_path, f"by-{count}")
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "by-1", tmp_path / "by-2"
    rows = [json.loads((two / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    seen = json.loads((one / "rows-0.json").read_text())
    assert len(seen) == 12
    assert sorted(rows[0] + rows[1]) == sorted(seen)
    assert [len(part) for part in rows] == [6, 6]
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    first, second = (load_file(out / "model/model.safetensors") for out in (one, two))
    for name, weight in first.items():
        assert (second[name] - weight).abs().max() < 1e-4, name


def test_two_ranks_go_on_after_a_kill(tiny: Path, tmp_path: Path) -> None:
    assert train(2, tiny, tmp_path, "whole").returncode == 0
    assert train(2, tiny, tmp_path, "parts", stop_at=5).returncode != 0
    assert train(2, tiny, tmp_path, "parts").returncode == 0
    resumed = json.loads((tmp_path / "parts/train.json").read_text())["resumed_at"]
    assert resumed == [4]
    assert curve(tmp_path / "parts") == pytest.approx(curve(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize(
    ("fault", "told"), [("die_at", "exitcode  : 9"), ("poison_at", "loss is nan at step 3")]
)
def test_a_fault_in_one_rank_ends_all_within_a_minute(
    fault: str, told: str, tiny: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    done = train(2, tiny, tmp_path, "fault", **{fault: 3})
    assert done.returncode != 0
    assert told in done.stderr
    assert time.monotonic() - began < 120  # a minute, and the start of two interpreters
    assert not (tmp_path / "fault" / "model").exists()


def test_loss_and_gradients_are_the_same_when_weights_are_sharded() -> None:
    done = ranks(2, "shard_child.py")
    assert done.returncode == 0, done.stderr


def test_weights_spread_by_fsdp_are_saved_whole(tiny: Path, tmp_path: Path) -> None:
    done = ranks(2, "gather_child.py", tiny, tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(at / "model.safetensors") for at in (tiny, tmp_path / "model"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert (after[name] == weight).all(), name
