"""Training: resume is exact, files are whole, faults stop a run before it hurts."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerState

from endprompt import recipe
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import OutputError, RecipeError, TextError, TrainingError
from endprompt.io import claims, digests, files
from endprompt.io.files import sha256_file
from endprompt.models import bf16_attention
from endprompt.train import checkpoints, run
from tiny_checkpoint import RECALL_POSE
from tiny_families import tiny_model

TARGET = 512
SAVE = "transformers.modeling_utils.safe_save_file"
SETTINGS: dict[str, Any] = {
    "rows.kinds.1.terminal.recall": {"verbatim": 2},
    "rows.tokens": 128,
    "training.tokens": 128 * 2 * 6,
    "training.tokens_per_step": 256,
    "training.learning_rate": 1e-3,
    "training.save_steps": 2,
}


LONG_QUOTE = {"verbatim": 1, "cue_tokens": (60, 60), "answer_tokens": (60, 60)}
"""More than a row holds, whatever else is left out."""


def a_recipe(**changes: Any) -> recipe.Recipe:
    chosen = recipe.load(RECALL_POSE).replace(SETTINGS | changes)
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


def test_damaged_bytes_in_a_checkpoint_do_not_change_the_resumed_weights(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(out: str, kill_at: int | None = None) -> run.Trained:
        def progress(state: dict[str, Any]) -> None:
            if state["done"] == kill_at:
                raise Killed

        return run.train(
            a_recipe(), model=str(tiny), documents=documents, target=TARGET,
            out=tmp_path / out, progress=progress,
        )  # fmt: skip

    train("whole")
    weights = sha256_file(tmp_path / "whole/model/model.safetensors")
    with pytest.raises(Killed):
        train("one", 5)
    shutil.copytree(tmp_path / "one", tmp_path / "all")

    def harm(out: str, step: int) -> None:
        path = tmp_path / out / f"checkpoints/checkpoint-{step}/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 255
        path.write_bytes(data)

    harm("one", 4)
    assert train("one").resumed_at == [2]
    assert sha256_file(tmp_path / "one/model/model.safetensors") == weights
    harm("all", 2)
    harm("all", 4)
    assert train("all").resumed_at == []
    assert "training starts at step 0" in caplog.text
    assert sha256_file(tmp_path / "all/model/model.safetensors") == weights


def test_a_finished_run_is_returned_and_nothing_is_done(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**more: Any) -> run.Trained:
        return run.train(
            a_recipe(**{"training.tokens": 512}), model=str(tiny), documents=documents,
            target=TARGET, out=tmp_path / "run", **more,
        )  # fmt: skip

    first = train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr(run.models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert train() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(OutputError, match="another documents"):
        train(fingerprint="other")


def test_a_run_refused_for_its_rows_can_be_given_again_as_the_error_says(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"raise rows\.tokens to \d+ or shorten the cue"):
        run.train(
            a_recipe(**{"rows.kinds.1.terminal.recall": LONG_QUOTE}), model=str(tiny),
            documents=documents, target=TARGET, out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    run.train(
        a_recipe(**{"training.tokens": 256}), model=str(tiny), documents=documents,
        target=TARGET, out=tmp_path / "run",
    )  # fmt: skip


def test_other_weights_at_the_same_path_are_another_run(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")

    def train(kill_at: int | None) -> run.Trained:
        def progress(state: dict[str, Any]) -> None:
            if state["done"] == kill_at:
                raise Killed

        return run.train(
            a_recipe(), model=str(base), documents=documents, target=TARGET,
            out=tmp_path / "run", progress=progress,
        )  # fmt: skip

    with pytest.raises(Killed):
        train(3)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(OutputError, match="another weights_digest: choose another --out"):
        train(None)


def test_a_folder_with_the_model_or_other_files_is_left_as_it_is(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.bin").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for model, match in ((base, "holds what is read"), (tiny, "holds other files")):
        with pytest.raises(OutputError, match=match):
            run.train(
                a_recipe(), model=str(model), documents=documents, target=TARGET, out=tmp_path
            )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("torch.save", RuntimeError("[...] . PytorchStreamWriter failed writing file data/3")),
        ("torch.save", RuntimeError("basic_ios::clear: iostream error")),
        ("torch.save", OSError(28, "No space left on device")),
        (SAVE, RuntimeError("I/O error: No space left on device (os error 28)")),
        (SAVE, OSError(28, "No space left on device", "x")),
        ("transformers.trainer.TrainerState.save_to_json", OSError(122, "Disk quota exceeded")),
        ("endprompt.train.run.models.write", Exception("No space left on device (os error 28)")),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_line_wherever_it_is_met(
    where: str, error: Exception, tiny: Path, documents: TokenDocuments, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise error

    def train() -> None:
        run.train(
            a_recipe(), model=str(tiny), documents=documents, target=TARGET, out=tmp_path / "run"
        )

    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        with pytest.raises(OutputError, match=r"no space left on the disk .*: free some, run aga"):
            train()
    train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "claim.json", "model", "train.json"]  # fmt: skip


def test_a_disk_too_small_is_refused_before_training(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(OutputError, match=r"GiB free, and checkpoints and the model need .* GiB"):
        run.train(
            a_recipe(), model=str(tiny), documents=documents, target=TARGET, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_not_whole_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def save(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        for name in ("model.safetensors", "optimizer.pt"):
            (folder / name).write_bytes(b"x" * 100)
        state = TrainerState(global_step=step)
        checkpoints.MarkComplete([]).on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        return folder

    def harm(folder: Path, name: str, content: bytes | None) -> None:
        before = (folder / name).stat()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
            os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))

    for name, content in [
        ("model.safetensors", b"x" * 60),
        ("model.safetensors", b"x" * 99 + b"y"),
        ("optimizer.pt", b"y" + b"x" * 99),
        ("optimizer.pt", None),
        ("complete.json", None),
        ("complete.json", b"{}"),
        ("complete.json", b"[" * 100_000),
        ("complete.json", b"[3]"),
    ]:
        caplog.clear()
        first, second = save(2), save(10)
        assert checkpoints.last_whole(tmp_path) == checkpoints.Whole(second, [10])
        harm(second, name, content)
        assert checkpoints.last_whole(tmp_path) == checkpoints.Whole(first, [2]), (name, content)
        assert caplog.messages == ["checkpoint checkpoint-10 is not whole: it is passed over"]
    mark = (first / "complete.json").read_text()
    harm(first, "complete.json", mark.replace('"resumed_at": []', '"resumed_at": [1]').encode())
    caplog.clear()
    assert checkpoints.last_whole(tmp_path) is None
    assert "no whole checkpoint is left" in caplog.messages[-1]
    assert "training starts at step 0" in caplog.messages[-1]
    caplog.clear()
    assert checkpoints.last_whole(tmp_path / "none") is None
    assert not caplog.messages


def test_loss_that_is_not_finite_stops_before_the_weights_are_hurt(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = run.aligned_loss
    calls = []

    def poisoned(*given: Any, **named: Any) -> Any:
        losses = measure(*given, **named)
        calls.append(len(calls))
        if len(calls) == 4:
            return losses.__class__(losses.weighted * np.nan, losses.weight, losses.by_segment)
        return losses

    monkeypatch.setattr(run, "aligned_loss", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan at step 4 \(rows 6 to 7\)"):
        run.train(a_recipe(), model=str(tiny), documents=documents, target=TARGET, out=tmp_path)
    assert not (tmp_path / "model").exists()
    assert checkpoints.last_whole(tmp_path / "checkpoints") is not None


WAITS = {
    torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
    torch.ops.aten.bincount, torch.ops.aten.unique_dim, torch.ops.aten._unique2,
}  # fmt: skip
"""Operations whose result's shape or value the host needs: on a GPU, it waits for all before."""


class WaitsOfAPass(TorchDispatchMode):
    """Counts, by function, what would make the host wait for a GPU inside training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_mask = func.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or func.overloadpacket in WAITS:
            stack = traceback.extract_stack()
            if any(frame.name == "training_step" for frame in stack):
                known = [
                    f.name
                    for f in stack
                    if {"endprompt", "transformers"} & {*Path(f.filename).parts}
                ]
                self.found[known[-1]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("changes", "reads"),
    [({}, 1), ({"training.prefix_loss": "base"}, 2), ({"training.label_weights": "gain"}, 2)],
)
def test_a_gpu_is_waited_for_once_a_step_and_not_in_every_pass(
    changes: dict[str, Any], reads: int, tiny: Path, documents: TokenDocuments, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "TOKENS_AT_ONCE", 128)
    changes = {"training.tokens_per_step": 512, "training.tokens": 512 * 3, **changes}
    with WaitsOfAPass() as waits:
        run.train(
            a_recipe(**changes), model=str(tiny), documents=documents, target=TARGET, out=tmp_path
        )
    # Transformers asks in every pass whether a row is padded, as it does for its own Trainer
    of_transformers = {"_ignore_causal_mask_sdpa": 12 * reads}
    assert waits.found == {"_require_finite": 3, **of_transformers}


def test_a_folder_of_another_run_is_refused(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    begun = {"recipe_hash": a_recipe().hash(), "model": str(tiny), "target": TARGET}
    with claims.output(tmp_path, "train") as held:
        held.claim(begun | digests.of_model(str(tiny)) | {"documents": ""})
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "begun").touch()
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
    with pytest.raises(RecipeError, match=r"raise rows\.tokens to \d+ or shorten the cue"):
        run.train(
            a_recipe(**{"rows.kinds.1.terminal.recall": LONG_QUOTE}), model=str(tiny),
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
    assert divergence("view") != divergence("text")


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


def test_losses_in_bf16_stay_beside_those_in_float32(
    tiny: Path, documents: TokenDocuments, tmp_path: Path
) -> None:
    def curve(dtype: str) -> list[float]:
        done = run.train(
            a_recipe(**{"training.dtype": dtype}), model=str(tiny), documents=documents,
            target=TARGET, out=tmp_path / dtype,
        )  # fmt: skip
        assert done.computation["precision"] == dtype
        assert done.saved_precision == "float32", "weights stay what they were"
        return [at["loss"] for at in done.curve]

    exact, rounded = curve("float32"), curve("bfloat16")
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(("fast", "name"), [(True, bf16_attention.NAME), (False, "sdpa")])
def test_in_bf16_model_and_teacher_attend_by_matmuls_where_the_cpu_is_fast_at_them(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fast: bool, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: fast)
    attend = mock.Mock(wraps=bf16_attention.attend)
    monkeypatch.setattr(bf16_attention, "attend", attend)
    settings = {"training.dtype": "bfloat16", "training.prefix_loss": "base"}
    done = run.train(
        a_recipe(**settings, **{"training.tokens": 256}), model=str(tiny), documents=documents,
        target=TARGET, out=tmp_path,
    )  # fmt: skip
    assert done.computation["attention"] == name
    layers = json.loads((tmp_path / "model/config.json").read_text())["num_hidden_layers"]
    passes = done.steps * 2  # the teacher's and the model's
    assert attend.call_count == (passes * layers if fast else 0)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert saved.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("dtype", "gpu", "ranks", "name"),
    [
        ("bfloat16", False, 1, bf16_attention.NAME),
        ("bfloat16", True, 1, "sdpa"),
        ("bfloat16", False, 2, "sdpa"),  # attention goes round the ranks inside SDPA
        ("float32", False, 1, "sdpa"),
    ],
)
def test_only_whole_rows_in_bf16_on_a_cpu_are_attended_by_matmuls(
    monkeypatch: pytest.MonkeyPatch, dtype: str, gpu: bool, ranks: int, name: str
) -> None:
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(run.context_parallel, "ranks_of_a_row", lambda: ranks)
    model = tiny_model()
    run._prefer_matmuls(model, dtype)
    assert model.config._attn_implementation == name


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
    assert config["rope_scaling"]["factor"] == 6.0
    assert isinstance(config["rope_scaling"]["factor"], float)
    tokenizer = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == TARGET
    assert (tmp_path / "model/chat_template.jinja").is_file()


def test_a_spike_of_the_loss_is_reported_with_its_rows(
    tiny: Path, documents: TokenDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    measure, calls = run.aligned_loss, []

    def leaping(*given: Any, **named: Any) -> Any:
        losses = measure(*given, **named)
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
