"""Training: resume is exact, files are whole, faults stop a run before it hurts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from endprompt import recipe
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import OutputError, RecipeError, TextError, TrainingError
from endprompt.io import claims
from endprompt.io.files import sha256_file
from endprompt.train import run

TARGET = 512
SETTINGS: dict[str, Any] = {
    "rows.kinds.1.terminal.recall": {"quotes": 2},
    "rows.tokens": 128,
    "training.tokens": 128 * 2 * 6,
    "training.tokens_per_step": 256,
    "training.learning_rate": 1e-3,
    "training.save_steps": 2,
}


def a_recipe(**changes: Any) -> recipe.Recipe:
    chosen = recipe.load("recall-pose").replace(SETTINGS | changes)
    return chosen.resolve(window=128, target=TARGET, gpu=False)


@pytest.fixture(scope="module")
def documents() -> TokenDocuments:
    rng = np.random.default_rng(0)
    return TokenDocuments.from_arrays([rng.integers(0, 256, n) for n in (3000, 1500)])


class Killed(Exception):
    pass


def test_interrupted_twice_gives_the_same_weights_bit_for_bit(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    def train(out: str, kill_at: int | None = None) -> run.Trained:
        def progress(state: dict[str, Any]) -> None:
            if state["done"] == kill_at:
                raise Killed

        return run.train(
            a_recipe(), model=str(tiny), documents=documents, target=TARGET,
            out=tmp_path / out, progress=progress,
        )  # fmt: skip

    whole = train("whole")
    for step in (3, 5):
        with pytest.raises(Killed):
            train("parts", step)
    parts = train("parts")

    assert parts.resumed_at == [2, 4]
    digests = {
        sha256_file(tmp_path / out / "model/model.safetensors") for out in ("whole", "parts")
    }
    assert len(digests) == 1
    curves = [[entry["loss"] for entry in trained.curve] for trained in (whole, parts)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 6
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_checkpoint_cut_short_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        if step < 6:  # the process died before the last one was marked
            mark = {"sizes": {"model.safetensors": 100}, "resumed_at": []}
            (folder / "complete.json").write_text(json.dumps(mark))
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"x" * 60)
    assert run.last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-6 is not whole" in caplog.text
    assert "checkpoint-4 is not whole" in caplog.text
    assert run.last_whole_checkpoint(tmp_path / "none") is None


def test_loss_that_is_not_finite_stops_before_the_weights_are_hurt(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = run.aligned_loss
    calls = []

    def poisoned(*given: Any) -> Any:
        losses = measure(*given)
        calls.append(len(calls))
        if len(calls) == 4:
            return losses.__class__(losses.weighted * np.nan, losses.weight, losses.by_segment)
        return losses

    monkeypatch.setattr(run, "aligned_loss", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan at step 4 \(rows 6 to 7\)"):
        run.train(a_recipe(), model=str(tiny), documents=documents, target=TARGET, out=tmp_path)
    assert not (tmp_path / "model").exists()
    assert run.last_whole_checkpoint(tmp_path / "checkpoints") is not None


def test_a_folder_of_another_run_is_refused(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    begun = {"recipe_hash": a_recipe().hash(), "model": str(tiny), "target": TARGET}
    claims.claim(tmp_path / "claim.json", begun | {"documents": ""})
    with pytest.raises(OutputError, match="another recipe_hash: choose another --out"):
        run.train(
            a_recipe(**{"training.seed": 1}), model=str(tiny), documents=documents,
            target=TARGET, out=tmp_path,
        )  # fmt: skip


def test_text_or_rows_too_short_are_said_before_the_model_loads(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match="rows need documents of 128 tokens"):
        run.train(
            a_recipe(), model=str(tiny), documents=TokenDocuments.from_arrays([np.arange(50)]),
            target=TARGET, out=tmp_path / "text",
        )  # fmt: skip
    with pytest.raises(RecipeError, match=r"raise rows\.tokens or shorten the cue"):
        run.train(
            a_recipe(**{"rows.kinds.1.terminal.recall": {"quotes": 9}}), model=str(tiny),
            documents=documents, target=TARGET, out=tmp_path / "rows",
        )  # fmt: skip


def test_a_run_that_its_base_teaches_stays_nearer_to_it(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    def divergence(prefix_loss: str) -> float:
        """Nats a token between the trained model and the base on a text inside the window."""
        chosen = a_recipe(**{"training.prefix_loss": prefix_loss, "training.learning_rate": 3e-3})
        run.train(
            chosen, model=str(tiny), documents=documents, target=TARGET, out=tmp_path / prefix_loss
        )
        ids = torch.from_numpy(documents[0][:100]).long()[None]
        said, told = (
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits.log_softmax(-1)
            for folder in (tmp_path / prefix_loss / "model", tiny)
        )
        return float((told.exp() * (told - said)).sum(-1).mean().detach())

    assert divergence("base") < 0.8 * divergence("text")


def test_gradient_accumulation_gives_the_gradient_of_one_batch(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    def first_step(at_once: int, out: str) -> dict[str, float]:
        limit = run.TOKENS_AT_ONCE
        run.TOKENS_AT_ONCE = at_once
        try:
            done = run.train(
                a_recipe(**{"training.tokens": 256 * 2}), model=str(tiny), documents=documents,
                target=TARGET, out=tmp_path / out,
            )  # fmt: skip
        finally:
            run.TOKENS_AT_ONCE = limit
        return done.curve[0]

    one, two = first_step(4096, "batch"), first_step(128, "accumulated")
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


def test_saved_config_serves_readers_of_both_layouts(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    run.train(
        a_recipe(**{"training.tokens": 256}), model=str(tiny), documents=documents,
        target=TARGET, out=tmp_path,
    )  # fmt: skip
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["max_position_embeddings"] == TARGET
    assert config["use_cache"] is True
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["rope_scaling"]["factor"] == 4.0
    assert isinstance(config["rope_scaling"]["factor"], float)
    tokenizer = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == TARGET
    assert (tmp_path / "model/chat_template.jinja").is_file()


def test_a_spike_of_the_loss_is_reported_with_its_rows(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    measure, calls = run.aligned_loss, []

    def leaping(*given: Any) -> Any:
        losses = measure(*given)
        calls.append(1)
        factor = 5 if len(calls) == 10 else 1
        return losses.__class__(losses.weighted * factor, losses.weight, losses.by_segment)

    monkeypatch.setattr(run, "aligned_loss", leaping)
    run.train(
        a_recipe(**{"training.tokens": 256 * 12}), model=str(tiny), documents=documents,
        target=TARGET, out=tmp_path,
    )  # fmt: skip
    told = [entry.getMessage() for entry in caplog.records if "median" in entry.getMessage()]
    assert len(told) == 1
    assert "at step 10 (rows 18 to 19) is 5.0 times the median of the 9 steps" in told[0]


def test_tensorboard_gets_what_a_run_is_watched_by(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run.train(
        a_recipe(**{"training.tokens": 256 * 2}), model=str(tiny), documents=documents,
        target=TARGET, out=tmp_path, report_to="tensorboard",
    )  # fmt: skip
    (events,) = (tmp_path / "tensorboard").rglob("events.out.tfevents*")
    found = EventAccumulator(str(events.parent)).Reload()
    values = {
        name: [event.value for event in found.Scalars(f"train/{name}")]
        for name in ("tokens_per_second", "share_of_peak", "memory_gib", "prefix_loss",
                     "terminal_loss", "terminal_gradient_share")
    }  # fmt: skip
    assert all(len(each) == 2 and min(each) > 0 for each in values.values()), values
    assert max(values["terminal_gradient_share"]) < 1
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
