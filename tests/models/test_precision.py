"""Precision: the checkpoint's own unless asked otherwise, kept when saved, named in results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from endprompt import recipe as recipes
from endprompt.cli.app import run as command
from endprompt.data import holdout
from endprompt.data.mixture import Weighted
from endprompt.data.prepare import prepare
from endprompt.data.prepared import open_documents
from endprompt.data.sources import open_source
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import ModelError
from endprompt.eval.engine import Engine
from endprompt.export.checkpoint import export
from endprompt.io.provenance import Computation
from endprompt.models import bf16_attention, precision
from endprompt.models import checkpoint as models
from endprompt.report import tables
from endprompt.train.run import train
from finished_run import TARGET, make_run
from tiny_checkpoint import WINDOW, save_tiny

WEIGHTS = "model.safetensors"
PRECISIONS = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model stored in each precision; the config of the float16 one says another."""
    tmp = tmp_path_factory.mktemp("stored")
    found = {}
    for kind in PRECISIONS:
        folder = found[kind] = save_tiny(tmp / kind, initializer_range=0.4)
        tensors = load_file(folder / WEIGHTS)
        cast = {name: tensor.to(getattr(torch, kind)) for name, tensor in tensors.items()}
        save_file(cast, folder / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = "bfloat16" if kind == "float16" else kind
        (folder / "config.json").write_text(json.dumps(config))
    return found


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 250, 400))
    return tmp_path / "tokens.npy"


def on_disk(folder: Path) -> set[str]:
    """Precisions of the weights of a checkpoint."""
    return {str(tensor.dtype) for tensor in load_file(folder / WEIGHTS).values()}


@pytest.mark.parametrize("kind", PRECISIONS)
def test_evaluation_runs_in_the_precision_that_weights_are_stored_in(
    kind: str, stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fast_in_bf16", lambda device: True)
    assert Engine.load(stored[kind]).computation.precision == kind
    assert Engine.load(stored[kind], dtype="float32").computation.precision == "float32"
    assert Engine.load(stored[kind], dtype="fast").computation.precision == "bfloat16"
    monkeypatch.setattr(precision, "fast_in_bf16", lambda device: False)
    assert Engine.load(stored[kind], dtype="fast").computation.precision == kind


@pytest.mark.parametrize(("half", "faster"), [(40.0, False), (0.25, True)])
def test_bf16_is_fast_where_it_is_measured_so_whatever_delays_the_measurement(
    half: float, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, done = [0.0], {torch.float32: 0, torch.bfloat16: 0}

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        done[a.dtype] += 1
        now[0] += (1.0 if a.dtype == torch.float32 else half) * (1 if done[a.dtype] % 3 else 1000)
        return a

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    for _ in range(5):
        assert precision.fast_in_bf16("cpu") is faster
        done[torch.bfloat16] += 1  # the next time delays fall elsewhere
    assert precision.fast_in_bf16("cuda")


def test_perplexity_equals_its_float64_reference(
    stored: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    given = ["eval", "perplexity", stored["float32"], "--tokens", tokens, "--window", WINDOW]
    assert command([*map(str, given), "--stride", str(WINDOW), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    model: Any = models.load(str(stored["float32"]), models.load_config(str(stored["float32"])))
    ids = torch.from_numpy(np.load(tokens))
    losses = []
    for window in ids.split(WINDOW):
        with torch.no_grad():
            logits = model.double()(input_ids=window[None], use_cache=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none"))
    assert found["nats_per_token"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    assert found["computation"]["precision"] == "float32"
    assert found["computation"]["attention"] == "sdpa"
    assert found["computation"]["threads"] == torch.get_num_threads()


def train_on(model: Path, out: Path, **changes: Any) -> Any:
    recipe = recipes.load("endprompt").replace(
        {"rows.tokens": 64, "training.tokens": 256, "training.learning_rate": 1e-2, **changes}
    )
    return train(
        recipe.resolve(window=WINDOW, target=TARGET, gpu=False),
        model=str(model),
        documents=TokenDocuments.from_arrays([np.arange(4000) % 250]),
        target=TARGET,
        out=out,
    )


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_trained_model_has_the_precision_of_its_base(
    kind: str, trainable: str, stored: dict[str, Path], tmp_path: Path
) -> None:
    done = train_on(stored[kind], tmp_path / "out", **{"training.trainable": trainable})
    assert on_disk(tmp_path / "out" / "model") == {f"torch.{kind}"}
    assert done.saved_precision == kind
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    assert written["saved_precision"] == kind
    assert written["computation"]["precision"] == "float32"  # the master copy
    before, after = (load_file(at / WEIGHTS) for at in (stored[kind], tmp_path / "out" / "model"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name], after[name])
    size = (tmp_path / "out" / "model" / WEIGHTS).stat().st_size
    assert size == pytest.approx((stored[kind] / WEIGHTS).stat().st_size, rel=0.05)


def test_weights_that_outgrow_float16_are_kept_in_float32(
    stored: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = models.load(str(stored["float16"]), models.load_config(str(stored["float16"])))
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    tokenizer = models.load_tokenizer(str(stored["float16"]))
    written = models.save(model, tokenizer, tmp_path / "m", TARGET, dtype="float16")
    assert written == "float32"
    assert on_disk(tmp_path / "m") == {"torch.float32"}
    assert float(load_file(tmp_path / "m" / WEIGHTS)["model.norm.weight"][3]) == 1e6
    assert "outgrown float16" in caplog.text


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_export_keeps_the_precision_of_the_run(
    kind: str, stored: dict[str, Path], tmp_path: Path
) -> None:
    run = make_run(stored[kind], tmp_path / "run")
    checkpoint = run / "arms" / "endprompt" / "model"
    shutil.copyfile(stored[kind] / WEIGHTS, checkpoint / WEIGHTS)
    assert on_disk(export(run, tmp_path / "own").folder) == {f"torch.{kind}"}
    assert on_disk(export(run, tmp_path / "half", dtype="float16").folder) == {"torch.float16"}


def test_export_refuses_a_precision_that_weights_do_not_fit(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    run = make_run(stored["float32"], tmp_path / "run")
    file = run / "arms" / "endprompt" / "model" / WEIGHTS
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="too large for float16"):
        export(run, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def written_by(model: Path, tokens: Path, tmp: Path) -> dict[str, Any]:
    """What each verb that measures a model leaves, by the verb."""
    text = tmp / "text.txt"
    words = "the river ran past old stone mills".split()
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 1400)))
    chats = tmp / "chats.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(4)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([Weighted(open_source(str(text)))], models.load_tokenizer(str(model)), tmp / "data")
    documents = open_documents(tmp / "data")
    holdout.save(tmp / "data", holdout.split(documents, tokens=600, count=1, row_tokens=64))
    train_on(model, tmp / "train")
    needles: list[object] = ["--depths", 2, "--lengths", 400, "--text", text]
    for words in (
        ["eval", "perplexity", model, "--tokens", tokens, "--window", 64, "--json", tmp / "p.json"],
        ["eval", "needle", model, *needles, "--json", tmp / "n.json"],
        ["eval", "window", model, "--data", tmp / "data", "--lengths", 600, "--needles", 2,
         "--json", tmp / "w.json"],
        ["eval", "run", model, "--tasks", "needle", *needles, "--out", tmp / "run"],
        ["sft", model, "--data", chats, "--out", tmp / "sft", "--set", "steps=1"],
    ):  # fmt: skip
        assert command([str(word) for word in words]) == 0
    files = {
        "eval perplexity": "p.json", "eval needle": "n.json", "eval window": "w.json",
        "eval run": "run/needle/summary.json", "train": "train/train.json", "sft": "sft/run.json",
    }  # fmt: skip
    found = {verb: json.loads((tmp / file).read_text()) for verb, file in files.items()}
    return found | {"sft": found["sft"]["sft"]}


@pytest.mark.parametrize(
    ("fast", "prefill"), [(True, bf16_attention.NAME), (False, "sdpa")], ids=["fast", "slow"]
)
def test_every_result_says_how_it_was_computed(
    stored: dict[str, Path],
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    prefill: str,
) -> None:
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: fast)
    found = written_by(stored["bfloat16"], tokens, tmp_path)
    for verb, result in found.items():
        computation = Computation.model_validate(result["computation"])
        trainable = verb in ("train", "sft")
        assert computation.precision == ("float32" if trainable else "bfloat16"), verb
        assert computation.device == "cpu", verb
        assert computation.attention == ("sdpa" if trainable else prefill), verb
        assert computation.threads == torch.get_num_threads(), verb


def test_an_evaluation_is_not_resumed_in_another_precision(
    stored: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bf16_attention, "_fast_matmuls", lambda: False)  # it has another attention
    text = tmp_path / "text.txt"
    text.write_text("the river ran past old stone mills " * 200)
    words = ["eval", "run", stored["bfloat16"], "--tasks", "needle", "--depths", 2,
             "--lengths", 400, "--text", text, "--out", tmp_path / "out"]  # fmt: skip
    given = [str(word) for word in words]
    assert command(given) == 0
    assert command(given) == 0
    assert command([*given, "--dtype", "float32"]) == 1
    assert "holds a run with another precision" in capsys.readouterr().err


def test_the_report_names_each_way_in_which_arms_were_computed() -> None:
    how = {"precision": "bfloat16", "device": "cpu", "processor": "Some CPU", "attention": "sdpa",
           "threads": 1}  # fmt: skip
    arms = [
        {"name": "base", "label": "base", "evaluation": {"computation": how}},
        {"name": "mine", "label": "mine", "trained": True, "evaluation": {"computation": how},
         "computation": how | {"precision": "float32", "threads": 2}},
    ]  # fmt: skip

    def lines() -> dict[str, str]:
        table = tables.origins({"arms": arms})
        return {row[0].text: row[1].text for row in table.rows if "computed" in row[0].text}

    assert lines() == {
        "training computed in": "float32, cpu (Some CPU), sdpa attention, 2 threads",
        "evaluation computed in": "bfloat16, cpu (Some CPU), sdpa attention, 1 thread",
    }
    arms[0]["evaluation"] = {"computation": how | {"precision": "float32"}}
    table = tables.origins({"arms": arms})
    assert [row[1].text for row in table.rows if row[0].text == "evaluation computed in"] == [
        "float32, cpu (Some CPU), sdpa attention, 1 thread: base",
        "bfloat16, cpu (Some CPU), sdpa attention, 1 thread: mine",
    ]
