"""What another trainer saved comes back: adapters are merged when they are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from endprompt.cli.app import run as command
from endprompt.errors import DataError, ModelError
from endprompt.export.checkpoint import export
from endprompt.export.verify import verify
from endprompt.io import digests
from endprompt.models import checkpoint as models
from endprompt.trainers.rows import write_rows
from tiny_checkpoint import save_tiny

TARGET = 512
SETTINGS: dict[str, Any] = {"rows.tokens": 64}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A base, rows of it, the scaled base, and an adapter of that, as PEFT saves one."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny(folder / "base", initializer_range=0.4)
    assert command(["prepare", str(text), "-t", str(base), "--out", str(folder / "data")]) == 0
    write_rows(
        "pose", model=str(base), data=folder / "data", target=TARGET, count=4,
        out=folder / "rows", scaled_base=folder / "scaled", overrides=SETTINGS,
    )  # fmt: skip
    save_adapter(folder / "scaled", folder / "adapter")
    return folder


def save_adapter(base: Path, folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    get_peft_model(network, settings).save_pretrained(folder)


@pytest.fixture
def adapter(places: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(places / "adapter", tmp_path / "adapter"))


def test_an_adapter_is_merged_into_its_base_when_it_is_loaded(places: Path) -> None:
    name = str(places / "adapter")
    network = models.load(name, models.load_config(name))
    base = AutoModelForCausalLM.from_pretrained(places / "scaled", dtype=torch.float32)
    ids = torch.arange(48)[None]
    plain = base(ids).logits
    wrapped = PeftModel.from_pretrained(base, name).eval()
    assert type(network) is type(base)
    torch.testing.assert_close(network(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=1e-4)
    assert float((plain - wrapped(ids).logits).detach().abs().max()) > 0.1, (
        "the adapter does something"
    )
    assert network.config.max_position_embeddings == TARGET
    assert (
        models.load_tokenizer(name).get_vocab()
        == models.load_tokenizer(str(places / "base")).get_vocab()
    )


def test_an_adapter_is_evaluated_as_a_model_is(places: Path, text: Path, tmp_path: Path) -> None:
    data, base = str(tmp_path / "data"), str(places / "base")
    assert command(["prepare", str(text), "-t", base, "--out", data, "--holdout", "40%"]) == 0
    name, whole = str(places / "adapter"), tmp_path / "whole"
    merged = models.load(name, models.load_config(name))
    models.save(merged, models.load_tokenizer(base), whole, TARGET)
    found = {}
    for model in (name, str(whole), str(places / "scaled")):
        file = tmp_path / "found.json"
        words = [
            "eval",
            "window",
            model,
            "--data",
            data,
            "--lengths",
            "1024,2048",
            "--needles",
            "2",
        ]
        assert command([*words, "--json", str(file)]) == 0
        found[model] = values(json.loads(file.read_text()))
        file.unlink()
    assert found[name] == pytest.approx(found[str(whole)], abs=1e-4)
    assert found[name] != pytest.approx(found[str(places / "scaled")], abs=1e-4)


def values(results: Any) -> list[float]:
    """Every number of the losses in a file of results."""
    if isinstance(results, dict):
        return [value for key in sorted(results) if "sec" not in key and "byte" not in key
                for value in values(results[key])]  # fmt: skip
    if isinstance(results, list):
        return [value for each in results for value in values(each)]
    return [results] if isinstance(results, float) else []


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_what_another_trainer_made_of_rows_is_exported(
    places: Path, tmp_path: Path, kind: str
) -> None:
    made = places / "adapter"
    if kind == "whole":
        made = tmp_path / "checkpoint"
        models.load(
            str(places / "scaled"), models.load_config(str(places / "scaled"))
        ).save_pretrained(made)
        models.load_tokenizer(str(places / "base")).save_pretrained(made)
    words = ["export", str(made), "--rows", str(places / "rows"), "--out", str(tmp_path / "out")]
    assert command(words) == 0
    assert [check for check in verify(tmp_path / "out").checks if not check.passed] == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == TARGET
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    merged = models.load(str(made), models.load_config(str(made))).state_dict()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], merged[name]) for name in written)


def test_a_checkpoint_with_another_scaling_than_its_rows_is_not_exported(
    places: Path, tmp_path: Path
) -> None:
    save_adapter(places / "base", tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"the rows of .* were made for"):
        export(tmp_path / "adapter", tmp_path / "out", rows=places / "rows")
    with pytest.raises(DataError, match="give --rows"):
        export(places / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linked_base_of_an_adapter_holds_the_merged_weights(places: Path, tmp_path: Path) -> None:
    save_adapter(places / "base", tmp_path / "adapter")
    write_rows(
        "pose", model=str(tmp_path / "adapter"), data=places / "data", target=TARGET, count=2,
        out=tmp_path / "rows", scaled_base=tmp_path / "scaled", overrides=SETTINGS,
    )  # fmt: skip
    name = str(tmp_path / "adapter")
    merged = models.load(name, models.load_config(name)).state_dict()
    written = load_file(tmp_path / "scaled" / "model.safetensors")
    assert all(torch.equal(written[key], merged[key]) for key in written)


def test_digests_of_an_adapter_name_its_base_too(places: Path, adapter: Path) -> None:
    before = digests.of_model(str(adapter))
    assert (
        before["base_weights_digest"] == digests.of_model(str(places / "scaled"))["weights_digest"]
    )
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {key: value + 1 for key, value in weights.items()}, adapter / "adapter_model.safetensors"
    )
    assert digests.of_model(str(adapter))["weights_digest"] != before["weights_digest"]


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "adapter_model.safetensors")


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def other_kind(folder: Path) -> None:
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.rmtree(folder)
    network = AutoModelForCausalLM.from_pretrained(base)
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(network, settings).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (edit(base_model_name_or_path=None), "of no named base"),
        (edit(base_model_name_or_path="./gone"), r"of \./gone, which is not there"),
        (edit(r=8), "cannot load|do not fit"),
        (edit(target_modules=["q_proj"]), "unexpected: .*v_proj"),
        (lose_a_tensor, "missing: "),
        (pickle, "without adapter_model.safetensors"),
        (other_kind, "which can't be merged"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(
    adapter: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(adapter)
    with pytest.raises(ModelError, match=said) as caught:
        models.load(str(adapter), models.load_config(str(adapter)))
    assert "\n" not in str(caught.value)


def test_an_adapter_beside_whole_weights_is_refused(places: Path, adapter: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(places / "scaled" / name, adapter / name)
    with pytest.raises(ModelError, match="beside whole weights"):
        models.load(str(adapter), models.load_config(str(adapter)))
