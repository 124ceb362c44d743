"""Every known family: trained, saved, and loaded in a process without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from endprompt import recipe as recipes
from endprompt.errors import TrainingError
from endprompt.models import checkpoint, families
from endprompt.train.run import train
from plain_reload import reload, require_past_the_window
from tiny_checkpoint import save_tokenizer
from tiny_families import EXTENDED, TINY_WINDOW, tiny_known

TARGET = 2 * TINY_WINDOW


class Text:
    """One document of bytes."""

    def __init__(self) -> None:
        self.text = np.random.default_rng(0).integers(33, 126, 2000)
        self.lengths = np.array([2000], dtype=np.int64)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Of each family, the folder of a run of one step and the rope_parameters it should have.

    The recipe is the default of `extend`, on rows that a window of 512 can hold.
    """
    made = {}
    root = tmp_path_factory.mktemp("runs")
    for name in EXTENDED:
        folder = root / name.replace("/", "-")
        torch.manual_seed(0)
        config = tiny_known(name, vocab_size=260, eos_token_id=256)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / "base")
        save_tokenizer(folder / "base")
        family = families.read(config)
        recipe = recipes.load("recall-anchors").replace(
            {"rope.scaling": family.suited("yarn"), "rows.tokens": 192,
             "rows.kinds.0.terminal.recall": {"verbatim": 1}, "rows.kinds.0.terminal.anchors": 1,
             "training.tokens_per_step": 192, "training.tokens": 192, "training.warmup_steps": 0,
             "training.learning_rate": 1e-2, "training.gradient_checkpointing": False}
        ).resolve(window=TINY_WINDOW, target=TARGET, gpu=False)  # fmt: skip
        train(recipe, model=str(folder / "base"), documents=Text(), target=TARGET,
              out=folder / "run")  # fmt: skip
        made[name] = folder, checkpoint.scaled_parameters(family, recipe, TARGET)
    return made


@pytest.fixture(scope="module")
def reloaded(runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain Transformers makes of them in a fresh process, past the old window."""
    out = tmp_path_factory.mktemp("reloaded") / "found.json"
    folders = {name: folder / "run" / "model" for name, (folder, _) in runs.items()}
    return reload(folders, TINY_WINDOW + 64, out)


@pytest.mark.parametrize("name", EXTENDED)
def test_trained_family_is_loaded_by_plain_transformers_and_generates_past_its_old_window(
    name: str, runs: dict[str, Any], reloaded: dict[str, Any]
) -> None:
    folder, wanted = runs[name]
    found = reloaded[name]
    require_past_the_window(found, families.read(tiny_known(name)), wanted, TARGET)
    model = checkpoint.load(
        str(folder / "run" / "model"), checkpoint.load_config(str(folder / "run" / "model"))
    )
    own = families.read(model.config).base.own
    assert own == {**wanted, **{k: own[k] for k in ("partial_rotary_factor",) if k in own}}
    ids = torch.arange(TINY_WINDOW + 64)[None] % 200 + 3
    with torch.no_grad():
        ours = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1]
    np.testing.assert_allclose(found["logits"], ours.numpy(), atol=1e-4)
    before = checkpoint.load(
        str(folder / "base"), checkpoint.load_config(str(folder / "base"))
    ).state_dict()
    assert any(not torch.equal(before[key], weight) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("name", EXTENDED)
def test_config_is_written_for_readers_of_the_older_layout(
    name: str, runs: dict[str, Any], reloaded: dict[str, Any]
) -> None:
    """Theta, the scaling of the global layers and the share that is rotated, at the top level."""
    wanted = runs[name][1]
    config = reloaded[name]["config"]
    assert config["rope_theta"] == wanted["rope_theta"]
    if wanted["rope_type"] != "default":
        scaling = config["rope_scaling"]
        assert scaling["rope_type"] == wanted["rope_type"]
        assert scaling["factor"] == wanted["factor"]
        assert isinstance(scaling["factor"], float)
    if config["model_type"] == "gpt_neox":
        assert (config["rotary_emb_base"], config["rotary_pct"]) == (10000.0, 0.25)
    if config["model_type"] == "gemma3_text":
        assert config["rope_local_base_freq"] == 10000.0
    assert config.get("partial_rotary_factor", 1.0) == wanted.get("partial_rotary_factor", 1.0)


def test_shifted_attention_is_refused_where_layers_are_local(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    """It has no mask, so that local layers would see all of a group."""
    folder, _ = runs["gpt-oss"]
    recipe = recipes.load("longlora").replace({"rope.scaling": "yarn", "rows.tokens": 192})
    recipe = recipe.resolve(window=TINY_WINDOW, target=TARGET, gpu=False)
    with pytest.raises(TrainingError, match="'gpt_oss' see 32 positions back only, and shifted"):
        train(recipe, model=str(folder / "base"), documents=Text(), target=TARGET,
              out=tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["Llama 3.1, 3.3", "Gemma 3 1B", "Olmo 3", "gpt-oss", "Phi-4-mini", "Qwen 3 MoE",
     "GPT-NeoX, Pythia", "GLM-4", "SmolLM3", "Vicuna 16K (linear)"],
)  # fmt: skip
def test_export_of_a_family_passes_its_own_check_past_the_old_window(
    name: str, runs: dict[str, Any], tmp_path: Path
) -> None:
    from endprompt.export import checkpoint as exporting
    from endprompt.export import verify

    folder, wanted = runs[name]
    done = exporting.export(folder / "run", tmp_path / "out", tokens=TINY_WINDOW + 90)
    found = verify.verify(done.folder)
    assert [check for check in found.checks if not check.passed] == []
    config = json.loads((done.folder / "config.json").read_text())
    if wanted["rope_type"] == "llama3":
        assert config["original_max_position_embeddings"] == 32, "the original, not the base's"
    damaged = dict(config)
    damaged["rope_theta"] = 123.0
    (done.folder / "config.json").write_text(json.dumps(damaged))
    faults = {check.name for check in verify.verify(done.folder).checks if not check.passed}
    assert "RoPE for readers of the older layout" in faults
