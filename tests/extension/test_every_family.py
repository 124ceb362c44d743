"""The whole main job on every known family, by the command line; `make check-slow`, minutes.

What of it can be fast enough for every change is in tests/train/test_known_runs.py: there the
checkpoint is trained and written without the evaluations and the report.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from endprompt.models import checkpoint, families
from endprompt.recipe import DEFAULT, build_recorded
from plain_reload import reload, require_past_the_window
from tiny_checkpoint import save_tokenizer
from tiny_families import EXTENDED, TINY_WINDOW, tiny_known

pytestmark = pytest.mark.slow
TARGET = 2 * TINY_WINDOW
SMALL = (
    "--lengths", TARGET, "--needles", 1,
    "--set", "rows.kinds.0.terminal.recall={verbatim: 1}",
    "--set", "rows.kinds.0.terminal.anchors=1", "--set", "rows.tokens=192",
    "--set", "training.tokens_per_step=192",
    "--set", "training.tokens=384",
)  # fmt: skip


@pytest.mark.parametrize("name", EXTENDED)
def test_extend_leaves_a_checkpoint_that_plain_transformers_reads_past_the_old_window(
    name: str,
    text: Path,
    endprompt: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = tiny_known(name, vocab_size=260, eos_token_id=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    done = endprompt("extend", tmp_path / "base", "--to", TARGET, "--text", text, *SMALL,
                     "--out", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [check for check in run["position_check"] if not check["passed"]] == []
    assert [arm["name"] for arm in run["arms"]] == ["base", "untrained", DEFAULT]
    assert all(set(arm["evaluation"]["loss"]) == {str(TARGET)} for arm in run["arms"])
    family = families.read(config)
    recipe = build_recorded(run["recipe"], "the run's recipe")
    assert recipe.rope.scaling == family.suited("yarn")
    wanted = checkpoint.scaled_parameters(family, recipe, TARGET)
    made = reload({name: Path(run["checkpoint"])}, TINY_WINDOW + 64, tmp_path / "found.json")
    require_past_the_window(made[name], family, wanted, TARGET)
