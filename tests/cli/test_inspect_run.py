"""`endprompt inspect RUN`: what training did, layer by layer, and the terminal's signal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from endprompt import recipe as recipes
from endprompt.cli.app import run
from endprompt.data import holdout
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import prepare
from endprompt.data.prepared import open_documents
from endprompt.data.sources import open_source
from endprompt.io import files, provenance
from endprompt.models import checkpoint as models


def a_run(folder: Path, tiny: Path, text: Path, method: str) -> Path:
    """A run whose model looks farther after training: its queries are halved."""
    import torch

    chosen = recipes.load(method).replace({"rows.tokens": 64})
    tokenizer = models.load_tokenizer(str(tiny))
    for name in ("untrained", chosen.name):
        shutil.copytree(tiny, folder / "arms" / name / "model")
    network: Any = models.load(str(tiny), models.load_config(str(tiny)))
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight.mul_(0.0)
    network.save_pretrained(folder / "arms" / chosen.name / "model")
    prepare([Weighted(open_source(str(text)))], tokenizer, folder / "data")
    documents = open_documents(folder / "data", tokenizer=tokenizer)
    split = holdout.split(documents, tokens=128, count=1, row_tokens=64)
    holdout.save(folder / "data", split)
    curve = [{"step": n, "terminal_loss": 4.0 / n, "prefix_loss": 4.0} for n in (1, 2, 3)]
    files.write_json(
        folder / "run.json",
        {
            "schema_version": provenance.SCHEMA_VERSION,
            "recipe": chosen.model_dump(mode="json"),
            "target": 512,
            "arms": [{"name": chosen.name, "trained": True, "curve": curve}],
        },
    )
    return folder


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("wide")
def test_a_run_shows_attention_before_and_after_and_the_signal(
    tiny: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = a_run(tmp_path / "mine", tiny, text, "endprompt"), tmp_path / "seen"
    words = ["inspect", str(folder), "--text", str(text / "one.txt"), "--tokens", "256"]
    assert run([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Attention by distance before and after training" in shown
    assert {path.name for path in out.iterdir()} == {
        f"{name}_mine.{kind}"
        for name in ("before_and_after", "far_heads", "signal")
        for kind in ("csv", "md")
    } | {"claim.json", "terminal-mine.svg", "terminal-mine.png"}
    lines = (out / "before_and_after_mine.csv").read_text().splitlines()
    for line in lines[1:]:
        _, *shares, _, score = map(float, line.split(","))
        # queries of nothing look at everything alike: 128 of 256 tokens stand across the jump
        assert shares[5] == pytest.approx(128 / 256, abs=0.07)
        assert score == 0
    assert "to 1.33 nats" in (out / "terminal-mine.svg").read_text()


def test_rows_without_a_terminal_have_no_signal(
    tiny: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_run(tmp_path / "mine", tiny, text, "pose")
    words = ["inspect", str(folder), "--text", str(text / "one.txt"), "--tokens", "256"]
    assert run(words) == 0
    assert "its rows have no terminal" in capsys.readouterr().out
    shutil.rmtree(folder / "arms" / "untrained")
    assert run(words) == 1
    assert "the run's folder has to be whole" in capsys.readouterr().err
    content = json.loads((folder / "run.json").read_text())
    content["recipe"]["training"]["trainable"] = "nothing"
    (folder / "run.json").write_text(json.dumps(content))
    assert run(words) == 1
    assert "there is no before and after" in capsys.readouterr().err
