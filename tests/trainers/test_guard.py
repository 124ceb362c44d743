"""The guard stops TRL, Transformers' Trainer and plain loops before a batch without its jump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from trl import SFTConfig, SFTTrainer

from endprompt import GuardCallback, guard
from endprompt import recipe as recipes
from endprompt.data import holdout
from endprompt.errors import ProbeError
from endprompt.export.checkpoint import export
from endprompt.export.verify import verify
from endprompt.models import checkpoint as models
from endprompt.train import position_check, run
from rows_given import ROW_TOKENS, SETTINGS, STEPS, TARGET, Given


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def batch_of(given: Given) -> dict[str, torch.Tensor]:
    rows = datasets.load_from_disk(str(given.rows))
    return default_data_collator([rows[0], rows[1]])


def arguments(out: Path, **changes: Any) -> dict[str, Any]:
    training = recipes.load("pose").replace(SETTINGS)
    training = training.resolve(window=128, target=TARGET, gpu=False).training
    settings = {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": 1,
        "learning_rate": training.learning_rate, "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_steps, "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm, "optim": "adamw_torch_fused", "use_cpu": True,
        "bf16": False, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "remove_unused_columns": False,
        "train_sampling_strategy": "sequential", "gradient_checkpointing": False,
    }  # fmt: skip
    return settings | changes


def with_trl(
    given: Given, out: Path, *, collator: Any = default_data_collator,
    callbacks: tuple[TrainerCallback, ...] = (), rows: Any = None, model: Path | None = None,
    lora: LoraConfig | None = None, **changes: Any,
) -> SFTTrainer:  # fmt: skip
    settings = {"max_length": ROW_TOKENS, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTTrainer(
        model_of(model or given.scaled),
        args=SFTConfig(**arguments(out, **(settings | changes))),
        train_dataset=rows or datasets.load_from_disk(str(given.rows)),
        processing_class=AutoTokenizer.from_pretrained(given.base, pad_token="<|im_end|>"),
        data_collator=collator,
        callbacks=list(callbacks),
        peft_config=lora,
    )


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def ours(given: Given, tmp_path_factory: pytest.TempPathFactory) -> tuple[run.Trained, Path]:
    """The same rows trained by `endprompt train`."""
    out = tmp_path_factory.mktemp("ours") / "run"
    tokenizer = models.load_tokenizer(str(given.base))
    documents, _ = holdout.training_documents(given.data, tokenizer)
    chosen = recipes.load("pose").replace(SETTINGS).resolve(window=128, target=TARGET, gpu=False)
    return run.train(
        chosen, model=str(given.base), documents=documents, target=TARGET, out=out
    ), out / "model"  # fmt: skip


def test_trl_with_the_shipped_settings_trains_as_we_do(
    given: Given, ours: tuple[run.Trained, Path], tmp_path: Path
) -> None:
    watch = GuardCallback(target=TARGET, rows=given.rows)
    trainer = with_trl(given, tmp_path, callbacks=(watch,))
    trainer.train()
    mine = [entry["loss"] for entry in ours[0].curve]
    assert losses(trainer) == pytest.approx(mine, abs=1e-3)
    trainer.save_model(str(tmp_path / "saved"))
    theirs, own = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", ours[1])
    )
    for name, weight in own.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-3, rtol=1e-3)
    family = models.family_of(str(given.base))
    network = models.load(str(tmp_path / "saved"), models.load_config(str(tmp_path / "saved")))
    position_check.require(position_check.check_positions(network, family, TARGET))


def test_an_adapter_that_trl_trains_passes_the_guard_and_is_exported(
    given: Given, tmp_path: Path
) -> None:
    watch = GuardCallback(target=TARGET, rows=given.rows)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = with_trl(given, tmp_path, callbacks=(watch,), lora=lora, learning_rate=0.1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    done = export(tmp_path / "saved", tmp_path / "exported", rows=given.rows)
    assert [check for check in verify(done.folder).checks if not check.passed] == []
    ids = torch.arange(48)[None]
    exported = model_of(done.folder)(ids).logits
    torch.testing.assert_close(exported, trainer.model.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def test_trl_by_itself_trains_the_control_without_jumps(given: Given, tmp_path: Path) -> None:
    dropped = with_trl(given, tmp_path / "a", collator=None, remove_unused_columns=True)
    dropped.train()
    rows = datasets.load_from_disk(str(given.rows))
    plain = rows.map(lambda row: {"position_ids": list(range(ROW_TOKENS))})
    control = with_trl(given, tmp_path / "b", rows=plain)
    control.train()
    assert losses(dropped) == pytest.approx(losses(control), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"collator": None, "remove_unused_columns": True}, "without position_ids"),
        ({"collator": None}, "without position_ids"),
        (
            {
                "collator": None,
                "padding_free": True,
                "max_length": None,
                "per_device_train_batch_size": 2,
            },
            "packed",
        ),
    ],
)
def test_guard_stops_trl_where_the_jump_is_lost(
    given: Given, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    watch = GuardCallback(target=TARGET, rows=given.rows)
    trainer = with_trl(given, tmp_path, callbacks=(watch,), **changes)
    with pytest.raises(ProbeError, match=f"^TRL: .*{said}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_guard_stops_a_base_that_is_not_scaled(given: Given, tmp_path: Path) -> None:
    watch = GuardCallback(target=TARGET, rows=given.rows)
    trainer = with_trl(given, tmp_path, callbacks=(watch,), model=given.base)
    with pytest.raises(ProbeError, match="window is 128 tokens"):
        trainer.train()


def test_guard_stops_a_tokenizer_with_other_ids(given: Given, tmp_path: Path) -> None:
    watch = GuardCallback(target=TARGET, rows=given.rows)
    trainer = with_trl(given, tmp_path, callbacks=(watch,))
    trainer.processing_class.add_tokens(["another"])
    trainer.callback_handler.processing_class = trainer.processing_class
    with pytest.raises(ProbeError, match="tokenizer is not that of the rows"):
        trainer.train()


def test_guard_stops_transformers_own_trainer_that_hands_over_no_mask(
    given: Given, tmp_path: Path
) -> None:
    rows = datasets.load_from_disk(str(given.rows)).remove_columns("attention_mask")
    trainer = Trainer(
        model_of(given.scaled), TrainingArguments(**arguments(tmp_path)), train_dataset=rows,
        data_collator=default_data_collator, callbacks=[GuardCallback(target=TARGET)],
    )  # fmt: skip
    with pytest.raises(ProbeError, match=r"^Transformers' Trainer: .*cut at its jump"):
        trainer.train()


FAULTS: list[tuple[Any, str]] = [
    (lambda b: b.pop("position_ids"), "without position_ids"),
    (lambda b: b.update(use_cache=b.pop("attention_mask") is None), "cut at its jump"),
    (lambda b: b.update(position_ids=torch.arange(ROW_TOKENS).expand(2, -1)), "no row has a jump"),
    (lambda b: b.update(position_ids=b["position_ids"] + TARGET), "past the target"),
    (lambda b: b.update(position_ids=b["position_ids"] * 2 // 2 + (b["position_ids"] > 99)),
     "other positions|past the target"),
    (lambda b: b.update({k: v[:, :-8] for k, v in b.items()}), "cut short"),
    (lambda b: b.update({k: v.reshape(1, -1) for k, v in b.items()}), "packed"),
    (lambda b: b.update(input_ids=b["input_ids"].flip(1)), "is none of"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_guard_in_a_loop_names_each_fault(given: Given, spoil: Any, said: str) -> None:
    batch, model = batch_of(given), model_of(given.scaled)
    guard(model, batch, target=TARGET, rows=given.rows)
    spoil(batch)
    with pytest.raises(ProbeError, match=said):
        guard(model, batch, target=TARGET, rows=given.rows)


def test_guard_stops_scaling_that_the_model_was_built_without(given: Given) -> None:
    model = model_of(given.base)
    model.config = model_of(given.scaled).config
    with pytest.raises(ProbeError, match="frequencies as written"):
        guard(model, batch_of(given), target=TARGET, rows=given.rows)


def test_guard_stops_rows_for_another_target_and_scaling(given: Given) -> None:
    model = model_of(given.scaled)
    with pytest.raises(ProbeError, match="made for 512 tokens"):
        guard(model, batch_of(given), target=1024, rows=given.rows)
    model.config.rope_parameters["factor"] = 9.0
    with pytest.raises(ProbeError, match="were made for RoPE"):
        guard(model, batch_of(given), target=TARGET, rows=given.rows)


def test_guard_leaves_model_and_random_state_as_they_were(given: Given) -> None:
    model = model_of(given.scaled).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    guard(model, batch_of(given), target=TARGET)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
