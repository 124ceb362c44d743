"""A base that is scaled already, from `extend` to a checkpoint that can be extended once more."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tiny_checkpoint import save_tokenizer
from tiny_families import tiny_known

pytestmark = pytest.mark.xdist_group("extend")
Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "--lengths", "1024,2048", "--needles", 2,
    "--set", "rows.kinds.0.terminal.recall={verbatim: 1}", "--set", "rows.tokens=384",
    "--set", "training.tokens_per_step=384", "--set", "training.tokens=384",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama 3.1: `llama3` by 8 over 32 tokens, a window of 512."""
    folder = tmp_path_factory.mktemp("models") / "llama-3.1"
    torch.manual_seed(0)
    config = tiny_known("Llama 3.1, 3.3", vocab_size=260, eos_token_id=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_extend_keeps_the_bases_rule_and_its_checkpoint_is_extended_once_more(
    base: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    done = endprompt("extend", base, "--to", "2k", "--text", text, *SMALL, "--out", tmp_path / "x")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "RoPE scaling: llama3, which the base has" in done.stdout
    found = json.loads((tmp_path / "x" / "run.json").read_text())
    assert found["recipe"]["rope"]["scaling"] == "llama3"
    assert [arm["label"] for arm in found["arms"]][:2] == [
        "base, its own Llama 3", "Llama 3, untrained"]  # fmt: skip
    made = tmp_path / "x" / "arms" / found["recipe"]["name"] / "model"
    config = json.loads((made / "config.json").read_text())
    assert config["rope_parameters"]["factor"] == 48.0
    assert config["rope_parameters"]["original_max_position_embeddings"] == 32
    assert config["max_position_embeddings"] == 2048
    again = endprompt("doctor", made, "--to", "8k")
    assert again.returncode == 0, again.stderr
    assert "llama3 by 48 from 32" in again.stdout
    assert "llama3 by 192 from 32" in again.stdout
    once_more = ("--to", "4k", "--text", text, *SMALL, "--out", tmp_path / "y", "--dry-run")
    planned = endprompt("extend", made, *once_more)
    assert planned.returncode == 0, planned.stderr
    recipe = yaml.safe_load((tmp_path / "y" / "recipe.yaml").read_text())
    assert recipe["rope"]["headroom"] == 1.0, "the checkpoint has its 1.5 already"


def test_a_rule_without_a_form_on_the_base_is_refused_before_anything_is_made(
    base: Path, text: Path, endprompt: Run, tmp_path: Path
) -> None:
    done = endprompt("extend", base, "--to", "2k", "--text", text, *SMALL, "--out", tmp_path / "x",
                     "--scaling", "yarn")  # fmt: skip
    assert done.returncode != 0
    assert "the base is scaled by 'llama3' (factor 8), and 'yarn' has no form" in done.stderr
    assert not (tmp_path / "x" / "data").exists()


def test_another_rule_is_taken_where_it_is_asked_for(base: Path, endprompt: Run) -> None:
    done = endprompt("doctor", base, "--to", "2k", "--scaling", "pi")
    assert done.returncode == 0, done.stderr
    assert "longrope by 4 from 512" in done.stdout
