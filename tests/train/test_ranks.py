"""Several processes: the same rows, curve and weights as one; faults end all of them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed, which endprompt does not install"
)
SETTINGS = {
    "rows.kinds.1.terminal.recall": {"verbatim": 2},
    "rows.tokens": 128,
    "training.tokens": 128 * 2 * 6,
    "training.tokens_per_step": 256,
    "training.learning_rate": 1e-3,
    "training.save_steps": 2,
}


def ranks(count: int, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in `count` processes, as `torchrun` does."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"}
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


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank, which every other has to equal."""
    folder = tmp_path_factory.mktemp("ranks")
    done = train(1, tiny, folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder / "whole"


@pytest.fixture(scope="module")
def killed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a run that was killed after step 5; its last checkpoint is of step 4."""

    @functools.cache
    def run(count: int, **orders: Any) -> Path:
        folder = tmp_path_factory.mktemp("killed")
        assert train(count, tiny, folder, "run", stop_at=5, late=0.5, **orders).returncode != 0
        return folder / "run"

    return run


def rows(out: Path) -> dict[int, list[list[int]]]:
    """Rows of each step, of all ranks; a step that was taken again counts once."""
    found: dict[int, list[list[int]]] = {}
    for path in out.glob("rows-*.jsonl"):
        steps = {one["step"]: one["rows"] for one in map(json.loads, path.read_text().splitlines())}
        for step, seen in steps.items():
            found.setdefault(step, []).extend(seen)
    return {step: sorted(seen) for step, seen in found.items()}


def curve(out: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((out / "train.json").read_text())["curve"]]


def must_equal(out: Path, whole: Path) -> None:
    """The same loss at each step and the same weights, within float32."""
    assert curve(out) == pytest.approx(curve(whole), rel=1e-5, abs=1e-7)
    found, expected = (load_file(at / "model/model.safetensors") for at in (out, whole))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() < 1e-5, name


def test_two_ranks_see_each_row_once_and_end_as_one_rank_does(
    tiny: Path, tmp_path: Path, whole: Path
) -> None:
    done = train(2, tiny, tmp_path, "two")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "two") == rows(whole)
    assert [len(seen) for seen in rows(whole).values()] == [2] * 6
    must_equal(tmp_path / "two", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{"training.prefix_loss": "base"}, {"training.prefix_loss": "view"}, {"rows.gaps": "filled"}],
    ids=str,
)
def test_sharded_ranks_with_a_teacher_or_filled_gaps_end_as_one_rank_does(
    more: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    taught = {"settings": SETTINGS | more}
    for count, name, orders in ((1, "one", {}), (2, "two", {"config": "fsdp2"})):
        done = train(count, tiny, tmp_path, name, **taught, **orders)
        assert done.returncode == 0, done.stderr
    must_equal(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("before", "after", "orders"),
    [
        pytest.param(2, 2, {}, id="two", marks=pytest.mark.slow),
        pytest.param(2, 1, {}, id="two-to-one", marks=pytest.mark.slow),
        pytest.param(1, 2, {}, id="one-to-two", marks=pytest.mark.slow),
        pytest.param(2, 2, {"config": "fsdp2"}, id="fsdp2"),
        pytest.param(2, 2, {"config": "zero3"}, id="zero3", marks=NEEDS_DEEPSPEED),
    ],
)
def test_a_killed_run_goes_on_with_any_number_of_ranks_in_the_order_of_rows(
    before: int, after: int, orders: dict[str, str], tiny: Path, tmp_path: Path,
    killed: Callable[..., Path], whole: Path,
) -> None:  # fmt: skip
    shutil.copytree(killed(before, **orders), tmp_path / "run")
    for path in (tmp_path / "run").glob("rows-*.jsonl"):  # of another number of ranks
        path.unlink()
    done = train(after, tiny, tmp_path, "run", **orders)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/train.json").read_text())["resumed_at"] == [4]
    assert rows(tmp_path / "run") == {step: rows(whole)[step] for step in (5, 6)}
    must_equal(tmp_path / "run", whole)


@pytest.mark.slow
def test_rows_cut_between_two_ranks_train_as_whole_ones_do(
    tiny: Path, tmp_path: Path, whole: Path
) -> None:
    flags = ["--parallelism_config_cp_size", "2"]
    done = train(2, tiny, tmp_path, "cut", config="fsdp2-cp", flags=flags)
    assert done.returncode == 0, done.stderr
    cut, uncut = rows(tmp_path / "cut"), rows(whole)
    assert {len(row) for seen in cut.values() for row in seen} == {128 // 2}
    for step, seen in uncut.items():
        assert sorted(chain(*cut[step])) == sorted(chain(*seen))
    must_equal(tmp_path / "cut", whole)


@NEEDS_DEEPSPEED
def test_another_precision_in_the_deepspeed_config_is_said_in_one_line(
    tiny: Path, tmp_path: Path
) -> None:
    flags = ["--mixed_precision", "bf16"]
    done = train(2, tiny, tmp_path, "mixed", config="zero3", flags=flags)
    assert done.returncode != 0
    assert "training.dtype (float32) the same precision" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_is_whole_once_every_rank_has_written_its_part(
    killed: Callable[..., Path],
) -> None:
    mark = json.loads((killed(2) / "checkpoints/checkpoint-4/complete.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= mark["files"].keys()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param("die_at", "exitcode  : 9", marks=pytest.mark.slow),
        ("poison_at", "loss is nan at step 3"),
    ],
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
