"""The GPU's table at toy size on a CPU: the same code; a second run does what is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_checkpoint import WORDS, save_tiny

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_table.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_table", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path: Path) -> tuple[str, ...]:
    """Options that make everything small."""
    save_tiny(tmp_path / "model", max_position_embeddings=1024)
    (tmp_path / "text").mkdir()
    for number in range(8):
        words = " ".join(WORDS[(7 * number + 3 * n) % len(WORDS)] for n in range(900))
        (tmp_path / "text" / f"{number}.txt").write_text(f"Of {number}. {words}.")
    return (
        "--model", str(tmp_path / "model"), "--text", str(tmp_path / "text"), "--to", "2k",
        "--tokens", "1024", "--row-tokens", "512", "--tokens-per-step", "512", "--texts", "1",
        "--needles", "2", "--ruler-tasks", "niah_single_1", "--samples", "1",
        "--near-samples", "2", "--shape", "toy", "--out", str(tmp_path / "table.json"),
    )  # fmt: skip


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    script.main()


def test_the_same_command_resumes_a_table(script, toy, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(script, "STEPS", 3)
    arms = ("--arms", "distilled-anchors")
    run(script, monkeypatch, *toy, *arms, "--rounds", "1")
    table = json.loads((tmp_path / "table.json").read_text())
    assert set(table["figures"]) == {
        "train/distilled-anchors", "texts/distilled-anchors",
        "ruler/1/distilled-anchors",
        "step/own/4x1024/kept", "step/own/4x1024/checkpointed",
        "large-step/toy/kept", "large-step/toy/checkpointed",
    }  # fmt: skip
    trained = table["figures"]["train/distilled-anchors"]
    assert (trained["tokens"], len(trained["curve"])) == (1024, 2)
    assert trained["checks_passed"] == trained["checks"] > 0
    near, far = table["figures"]["texts/distilled-anchors"]["lengths"]
    assert (near["length"], far["length"], len(far["digits_by_quarter"])) == (1024, 2048, 4)
    assert table["figures"]["ruler/1/distilled-anchors"]["samples"] == {"1024": 2, "2048": 1}
    assert table["figures"]["step/own/4x1024/kept"]["share_of_peak"] > 0

    # One figure is lost, a round more is asked for: nothing else is made again.
    lost = table["figures"].pop("texts/distilled-anchors")
    (tmp_path / "table.json").write_text(json.dumps(table))
    capsys.readouterr()
    run(script, monkeypatch, *toy, *arms, "--rounds", "2")
    said = [line.split("left  ")[1].split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["texts/distilled-anchors", "ruler/2/distilled-anchors"]
    again = json.loads((tmp_path / "table.json").read_text())["figures"]
    assert again["texts/distilled-anchors"]["lengths"] == lost["lengths"]


def test_no_piece_begins_without_time_for_it(script, tmp_path) -> None:
    table = script.Table(tmp_path / "t.json", {}, 60.0, longest={"train": 61.0, "texts": 5.0})
    table.piece("texts", "short", lambda: {"loss": 1.0})
    with pytest.raises(script.NoTime):
        table.piece("train", "pose", lambda: pytest.fail("begun"))
    assert list(json.loads((tmp_path / "t.json").read_text())["figures"]) == ["texts/short"]
    with pytest.raises(SystemExit, match="other settings"):
        script.Table(tmp_path / "t.json", {"to": 1}, 60.0)


def test_a_packed_model_is_the_model_in_bfloat16(script, toy, monkeypatch, tmp_path) -> None:
    from endprompt.models import checkpoint

    monkeypatch.setattr(script, "SHARD", "20KB")
    monkeypatch.setattr(script, "PART_BYTES", 60_000)
    run(script, monkeypatch, *toy, "--pack", str(tmp_path / "pack"))
    parts = sorted((tmp_path / "pack").iterdir())
    assert len(parts) > 1
    assert all(sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) < 60_000 for p in parts)
    model, text = script.put_together(tmp_path / "pack", tmp_path / "base")
    assert len(list(Path(text).iterdir())) == 8
    packed = checkpoint.load(model, checkpoint.load_config(model)).state_dict()
    source = str(tmp_path / "model")
    for name, tensor in (
        checkpoint.load(source, checkpoint.load_config(source)).state_dict().items()
    ):
        assert torch.equal(packed[name], tensor.bfloat16().float())
    (next(parts[0].rglob("*.safetensors"))).unlink()
    with pytest.raises(SystemExit, match="a part has not arrived"):
        script.put_together(tmp_path / "pack", tmp_path / "other")
