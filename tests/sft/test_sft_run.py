"""Fine-tuning keeps the window, learns answers, goes on where it was, and packs honestly."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from endprompt import recipe as recipes
from endprompt.errors import DataError, ModelError, OutputError, RecipeError, TrainingError
from endprompt.io import files
from endprompt.io.files import sha256_file
from endprompt.models import checkpoint as models
from endprompt.sft import record, run
from endprompt.sft.settings import Tuning, load
from tiny_checkpoint import RECALL_POSE

TARGET = 512
FEW: dict[str, Any] = {
    "rows_per_step": 2, "steps": 6, "save_steps": 2, "learning_rate": 1e-2,
    "schedule": "constant_with_warmup",
}  # fmt: skip


@pytest.fixture(scope="module")
def extended(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with YaRN and a window of 512, as a run saves it."""
    folder = tmp_path_factory.mktemp("extended") / "model"
    recipe = recipes.load(RECALL_POSE).replace({"rope.scaling": "yarn"})
    config = models.scaled_config(str(tiny), recipe, TARGET)
    network, tokenizer = models.load(str(tiny), config), models.load_tokenizer(str(tiny))
    models.save(network, tokenizer, folder, TARGET)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(7)]
    rows[3]["prompt"] *= 20  # positions beyond the base's window
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


class Killed(Exception):
    pass


def tune(model: Path, chats: str, out: Path, kill_at: int | None = None, **changes: Any) -> Any:
    def progress(state: dict[str, Any]) -> None:
        if state["done"] == kill_at:
            raise Killed

    settings = Tuning(**{**FEW, **changes})
    return record.tune(str(model), [chats], settings, out=out, progress=progress)


@pytest.mark.parametrize("packing", [False, True])
def test_interrupted_twice_gives_the_same_weights_bit_for_bit(
    packing: bool, extended: Path, chats: str, tmp_path: Path
) -> None:
    whole = tune(extended, chats, tmp_path / "whole", packing=packing)
    for step in (3, 5):
        with pytest.raises(Killed):
            tune(extended, chats, tmp_path / "parts", step, packing=packing)
    parts = tune(extended, chats, tmp_path / "parts", packing=packing)
    assert parts.resumed_at == [2, 4]
    names = [tmp_path / out / "model/model.safetensors" for out in ("whole", "parts")]
    assert sha256_file(names[0]) == sha256_file(names[1])
    curves = [[entry["loss"] for entry in done.curve] for done in (whole, parts)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 6
    assert curves[0][-1] < curves[0][0]


def test_the_saved_model_has_the_window_and_rope_it_began_with(
    extended: Path, chats: str, tmp_path: Path
) -> None:
    tune(extended, chats, tmp_path / "run", steps=1)
    before, after = (
        AutoConfig.from_pretrained(each) for each in (extended, tmp_path / "run/model")
    )
    assert after.rope_parameters == before.rope_parameters
    assert after.rope_parameters["rope_type"] == "yarn"
    assert after.max_position_embeddings == TARGET
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert tokenizer.model_max_length == TARGET
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(extended).chat_template
    older = json.loads((tmp_path / "run/model/config.json").read_text())
    assert older["rope_scaling"]["rope_type"] == "yarn"
    assert older["rope_theta"] == before.rope_parameters["rope_theta"]


def test_the_loss_is_that_of_answers_alone(extended: Path, chats: str, tmp_path: Path) -> None:
    """The first loss is the mean over answer tokens of the first step's rows, by hand."""
    from endprompt.sft import examples

    tokenizer = models.load_tokenizer(str(extended))
    rows = examples.read([chats], tokenizer, max_tokens=TARGET, split="train").rows
    network = models.load(str(extended), models.load_config(str(extended)))
    total, answers = 0.0, 0
    for row in rows:
        ids_BT, labels_BT = (torch.tensor(a)[None].long() for a in (row.tokens_T, row.labels_T))
        with torch.no_grad():
            out = network(ids_BT, attention_mask=torch.ones_like(ids_BT), labels=labels_BT)
        count = int((row.labels_T != examples.IGNORED).sum())
        total, answers = total + out.loss.item() * count, answers + count
    done = tune(extended, chats, tmp_path / "run", steps=1, rows_per_step=len(rows))
    assert done.curve[0]["loss"] == pytest.approx(total / answers, rel=1e-4)
    assert done.learnt == answers < done.tokens / 2


def test_packed_rows_give_the_loss_of_rows_alone(
    extended: Path, chats: str, tmp_path: Path
) -> None:
    """Packing changes how rows are laid out, not what they are: positions restart, no one peeks."""
    alone = tune(extended, chats, tmp_path / "alone", steps=1, rows_per_step=7)
    packed = tune(extended, chats, tmp_path / "packed", steps=1, rows_per_step=1, packing=True)
    assert packed.curve[0]["num_tokens"] == alone.curve[0]["num_tokens"] == alone.tokens
    assert packed.curve[0]["loss"] == pytest.approx(alone.curve[0]["loss"], rel=1e-4)


def test_packing_is_refused_by_name_where_rows_would_see_each_other(
    extended: Path, chats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def blind(module: Any, q: Any, k: Any, v: Any, mask: Any, **given: Any) -> Any:
        return real(module, q, k, v, None, **{**given, "is_causal": True})

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", blind)
    with pytest.raises(TrainingError, match="'llama' with attention 'sdpa' lets packed rows see"):
        tune(extended, chats, tmp_path / "run", packing=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_is_accepted_where_they_do_not(attention: str, extended: Path) -> None:
    config = models.load_config(str(extended))
    run.check_packing(models.load(str(extended), config, attention=attention))


def test_lora_is_merged_into_an_ordinary_checkpoint(
    extended: Path, chats: str, tmp_path: Path
) -> None:
    from safetensors import safe_open

    tune(extended, chats, tmp_path / "run", steps=2, trainable="lora")
    names = []
    for folder in (extended, tmp_path / "run/model"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


def test_the_record_says_what_was_done(extended: Path, chats: str, tmp_path: Path) -> None:
    tune(extended, chats, tmp_path / "run", steps=1)
    found = json.loads((tmp_path / "run/run.json").read_text())
    assert found["kind"] == "sft"
    assert found["started_from"] == str(extended)
    assert found["sft"]["rows"] == 7
    assert found["sft"]["window"] == TARGET
    assert found["sft"]["data_sha256"]
    assert {"trl", "torch"} <= set(found["versions"])


def test_a_finished_run_says_so_and_does_nothing(
    extended: Path, chats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(extended, chats, tmp_path / "run", steps=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr(run.models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert tune(extended, chats, tmp_path / "run", steps=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    with pytest.raises(OutputError, match="another settings"):
        tune(extended, chats, tmp_path / "run", steps=2)


def test_a_folder_of_another_run_is_refused(extended: Path, chats: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tune(extended, chats, tmp_path / "run", 3)
    with pytest.raises(OutputError, match="a run with another settings"):
        tune(extended, chats, tmp_path / "run", learning_rate=1e-3)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine.txt").write_text("")
    with pytest.raises(OutputError, match="holds other files"):
        tune(extended, chats, tmp_path / "files")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("torch.save", RuntimeError("[...] . PytorchStreamWriter failed writing file data/3")),
        ("transformers.modeling_utils.safe_save_file", OSError(28, "No space left on device")),
        ("endprompt.sft.record.files.write_json", OSError(28, "No space left on device")),
        ("endprompt.models.checkpoint.write", Exception("No space left on device (os error 28)")),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_is_met(
    where: str, error: Exception, extended: Path, chats: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        with pytest.raises(OutputError, match=r"no space left on the disk .*: free some, run aga"):
            tune(extended, chats, tmp_path / "run")
    tune(extended, chats, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "claim.json", "model", "run.json"]  # fmt: skip


def test_a_damaged_checkpoint_is_passed_over(
    extended: Path, chats: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tune(extended, chats, tmp_path / "whole")
    with pytest.raises(Killed):
        tune(extended, chats, tmp_path / "run", 3)
    (last,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-2")
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-1] ^= 255
    (last / "model.safetensors").write_bytes(weights)
    assert tune(extended, chats, tmp_path / "run").resumed_at == []
    assert "checkpoint-2 is not whole: it is passed over" in caplog.text
    assert "training starts at step 0" in caplog.text
    assert sha256_file(tmp_path / "run/model/model.safetensors") == sha256_file(
        tmp_path / "whole/model/model.safetensors"
    )


def test_a_disk_too_small_is_refused_before_training(
    extended: Path, chats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**18))
    with pytest.raises(OutputError, match=r"GiB free, and checkpoints and the model need .* GiB"):
        tune(extended, chats, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lost_loss_stops_the_run(extended: Path, chats: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d+: lower learning_rate"):
        tune(extended, chats, tmp_path / "run", learning_rate=1e38, max_grad_norm=1e30)


def test_mistakes_are_named(extended: Path, chats: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        load(None, {"epoch": 1})
    with pytest.raises(RecipeError, match="rows_per_step: input should be greater than 0"):
        load(None, {"rows_per_step": 0})
    with pytest.raises(RecipeError, match="no recipe file"):
        load(tmp_path / "none.yaml", {})
    with pytest.raises(RecipeError, match=r"max_tokens 1,000 exceeds the window of 512"):
        tune(extended, chats, tmp_path / "run", max_tokens=1000)
    with pytest.raises(DataError, match="all 7 rows"):
        tune(extended, chats, tmp_path / "run", max_tokens=8)
    with pytest.raises(ModelError, match="no such model"):
        tune(Path("/nowhere"), chats, tmp_path / "run")


def test_a_file_of_settings_is_read_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text("{trainable: lora, epochs: 3}")
    assert load(tmp_path / "lora.yaml", {"epochs": 2}) == Tuning(trainable="lora", epochs=2)
