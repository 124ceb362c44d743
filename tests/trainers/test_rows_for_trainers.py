"""`endprompt rows`: the rows that `endprompt train` trains on, in files that others read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from endprompt import recipe as recipes
from endprompt.cues import CueWriter
from endprompt.data import holdout, row_files
from endprompt.data.rows import RowSource
from endprompt.errors import DataError, OutputError, RecipeError
from endprompt.models import checkpoint as models
from endprompt.trainers import settings
from endprompt.trainers.rows import write_rows
from rows_given import ROW_TOKENS, SETTINGS, STEPS, TARGET, Given


def write(given: Given, out: Path, recipe: str = "pose", **changes: Any) -> Any:
    options = {"model": str(given.base), "data": given.data, "target": TARGET, "count": STEPS}
    return write_rows(recipe, out=out, overrides=SETTINGS, **(options | changes))


def test_rows_are_those_that_training_makes(given: Given) -> None:
    tokenizer = models.load_tokenizer(str(given.base))
    documents, _ = holdout.training_documents(given.data, tokenizer)
    chosen = recipes.load("pose").replace(SETTINGS).resolve(window=128, target=TARGET, gpu=False)
    source = RowSource(
        documents, chosen.rows, CueWriter(tokenizer), target=TARGET, seed=chosen.training.seed,
        count=STEPS,
    )  # fmt: skip
    rows = datasets.load_from_disk(str(given.rows))
    assert len(rows) == STEPS
    for index, row in enumerate(rows):
        assert row["input_ids"] == source.row(index).tokens_T.tolist()
        assert row["position_ids"] == source.row(index).positions_T.tolist()
        assert row["attention_mask"] == [1] * ROW_TOKENS
        assert row["labels"] == [-100, *row["input_ids"][1:]]


@pytest.mark.parametrize("form", row_files.FORMATS)
def test_formats_hold_the_same_rows_and_datasets_reads_them(
    given: Given, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "TOKENS_OF_A_PART", 7 * ROW_TOKENS)
    write(given, tmp_path / "rows", form=form)
    kind = {"jsonl": "json"}.get(form, form)
    found = datasets.load_dataset(
        kind, data_files=f"{tmp_path}/rows/train-*.{form}", split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    whole = datasets.load_from_disk(str(given.rows))
    assert found["input_ids"][:] == whole["input_ids"][:]
    assert found["position_ids"][:] == whole["position_ids"][:]
    assert len(list((tmp_path / "rows").glob(f"train-*.{form}"))) == 3


def test_labels_are_ignored_where_weights_are_zero(given: Given, tmp_path: Path) -> None:
    changed = {"rows.tokens": 128, "rows.kinds.0.terminal.recall": {"verbatim": 2}}
    write_rows("recall-anchors", model=str(given.base), data=given.data, target=TARGET, count=4,
               out=tmp_path / "rows", overrides=changed)  # fmt: skip
    for row in datasets.load_from_disk(str(tmp_path / "rows")):
        assert -100 in row["labels"][1:]
        assert set(row["labels"]) - {-100}


def test_weights_are_kept_and_trainers_without_them_named(
    given: Given, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = SETTINGS | {"rows.kinds.0.prefix.weight": 0.25}
    write_rows("pose", model=str(given.base), data=given.data, target=TARGET, count=4,
               out=tmp_path / "rows", overrides=changed)  # fmt: skip
    assert "Axolotl" in caplog.text
    weights = datasets.load_from_disk(str(tmp_path / "rows"))[0]["loss_weights"]
    assert weights[1:] == [0.25] * (ROW_TOKENS - 1)


class Killed(Exception):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "TOKENS_OF_A_PART", 6 * ROW_TOKENS)

    def kill(done: int, _: int) -> None:
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        write(given, tmp_path / "parts", progress=kill)
    write(given, tmp_path / "parts")
    write(given, tmp_path / "whole")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("form", row_files.FORMATS)
def test_a_part_of_a_killed_command_that_changed_is_written_again(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(row_files, "TOKENS_OF_A_PART", 6 * ROW_TOKENS)

    def kill(done: int, _: int) -> None:
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        write(given, tmp_path / "parts", progress=kill, form=form)
    part = next((tmp_path / "parts").glob("train-00001*"))
    part.write_bytes(part.read_bytes()[:-9])
    write(given, tmp_path / "parts", form=form)
    assert f"{part.name} was not as it had been written" in caplog.text
    assert "train-00000" not in caplog.text
    write(given, tmp_path / "whole", form=form)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_no_base_is_scaled_for_rows_whose_folder_is_refused(given: Given, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write(given, tmp_path / "rows", scaled_base=tmp_path / "base")
    assert not (tmp_path / "base").exists()
    write(given, tmp_path / "others")
    with pytest.raises(OutputError, match="another rows"):
        write(given, tmp_path / "others", count=3, scaled_base=tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("setting", ["rows.gaps=filled", "rows.document_mask=true"])
def test_what_a_row_in_a_file_cannot_hold_is_refused(
    setting: str, given: Given, tmp_path: Path
) -> None:
    key, value = setting.split("=")
    changed = SETTINGS | {key: value == "true" or value}
    with pytest.raises(RecipeError, match=key):
        write_rows("pose", model=str(given.base), data=given.data, target=TARGET, count=STEPS,
                   out=tmp_path / "rows", overrides=changed)  # fmt: skip
    assert not (tmp_path / "rows").exists()


def test_a_base_that_is_refused_leaves_no_folder_of_rows(given: Given, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write(given, tmp_path / "rows", scaled_base=tmp_path / "mine")
    assert not (tmp_path / "rows").exists()


def test_rows_that_changed_and_other_settings_are_refused(given: Given, tmp_path: Path) -> None:
    write(given, tmp_path / "rows")
    with pytest.raises(OutputError, match="another rows"):
        write(given, tmp_path / "rows", count=3)
    part = next((tmp_path / "rows").glob("train-*"))
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(DataError, match="has changed"):
        write(given, tmp_path / "rows")


@pytest.mark.parametrize("amount", [{"count": None}, {"tokens": 640}, {"count": None, "tokens": 9}])
def test_amounts_that_are_none_are_refused(
    given: Given, tmp_path: Path, amount: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError):
        write(given, tmp_path / "rows", **amount)
    assert not (tmp_path / "rows").exists()


def test_scaled_base_links_its_weights_and_loads(given: Given) -> None:
    assert (given.scaled / "model.safetensors").is_symlink()
    network = AutoModelForCausalLM.from_pretrained(given.scaled)
    assert network.config.max_position_embeddings == TARGET
    assert network.config.rope_parameters["rope_type"] != "default"


def test_a_scaled_base_is_never_put_over_another_folder(given: Given, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write(given, tmp_path / "rows", scaled_base=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize("trainer", settings.TRAINERS)
def test_a_configuration_is_written_for_each_trainer(
    given: Given, tmp_path: Path, trainer: str
) -> None:
    import yaml

    scaling = {"rope.scaling": "llama3"} if trainer == "torchtitan" else {}
    done = write_rows("pose", model=str(given.base), data=given.data, target=TARGET, count=STEPS,
                      out=tmp_path / "rows", overrides=SETTINGS | scaling,
                      scaled_base=tmp_path / "base", trainer=trainer)  # fmt: skip
    texts = {name: (tmp_path / "rows" / name).read_text() for name in done.configurations}
    assert any(str(tmp_path / "base") in text for text in texts.values())
    for name, text in texts.items():
        if name.endswith(".py"):
            compile(text, name, "exec")
        else:
            assert yaml.safe_load(text)


def test_the_manifest_names_each_configuration_and_an_edited_one_is_kept(
    given: Given, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(given, tmp_path / "rows", trainer="trl")
    done = write(given, tmp_path / "rows", trainer="axolotl", scaled_base=tmp_path / "base")
    assert done.configurations == {
        name: hashlib.sha256((tmp_path / "rows" / name).read_bytes()).hexdigest()
        for name in ("train_trl.py", "axolotl.yaml")
    }
    edited = tmp_path / "rows" / "axolotl.yaml"
    edited.write_text("micro_batch_size: 8\n")
    write(given, tmp_path / "rows", trainer="axolotl")
    assert edited.read_text() == "micro_batch_size: 8\n"
    assert f"{edited} was changed after it was written" in caplog.text
    # one that nobody edited follows its options
    write(given, tmp_path / "rows", trainer="trl", scaled_base=tmp_path / "base")
    assert str(tmp_path / "base") in (tmp_path / "rows" / "train_trl.py").read_text()


def test_an_unknown_trainer_is_refused_before_anything_is_written(
    given: Given, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="did you mean 'axolotl'"):
        write(given, tmp_path / "rows", trainer="axolotls")
    assert not (tmp_path / "rows").exists()


def test_a_scaling_that_a_trainers_models_lack_is_refused_before_anything_is_written(
    given: Given, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="torchtitan has no RoPE of type 'linear'"):
        write(given, tmp_path / "rows", trainer="torchtitan")
    assert not (tmp_path / "rows").exists()


def test_hashes_tell_rows_apart(given: Given) -> None:
    hashes = np.load(given.rows / row_files.HASHES)
    assert hashes.shape == (STEPS, 2)
    assert len(np.unique(hashes[:, 1])) > STEPS // 2
