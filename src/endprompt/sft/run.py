"""Fine-tune on conversations with TRL's SFTTrainer; window and RoPE stay what they were.

One row a forward pass, so that nothing is padded; with packing, TRL joins rows, their positions
start again at 0, and a check on the loaded model shows that none of them sees another.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from endprompt import rope
from endprompt.errors import RecipeError, TrainingError
from endprompt.io import claims, digests, files, provenance, records
from endprompt.models import checkpoint as models
from endprompt.recipe import Training
from endprompt.record import Run
from endprompt.sft import examples
from endprompt.sft.settings import Tuning
from endprompt.train import adapters, checkpoints

Progress = Callable[[dict[str, Any]], None]
RESULT = "run.json"
SEEN = 1e-3
"""Share of the logits' spread by which a packed row may differ from the same row alone."""


@dataclass
class Tuned:
    """What a run leaves: `model/` beside this, written as part of `run.json`."""

    settings: dict[str, Any]
    window: int
    rope_parameters: dict[str, Any]
    data: list[str]
    data_sha256: str
    rows: int
    too_long: int
    longest: int
    """Tokens of the longest conversation met, trained or not."""
    tokens: int
    learnt: int
    """Tokens of answers in one pass over the rows."""
    steps: int
    seconds: float
    peak_memory_bytes: int
    resumed_at: list[int]
    computation: dict[str, Any]
    """How it was computed (`provenance.Computation`)."""
    saved_precision: str
    """Of the weights in `model/`: that of the model it began with."""
    curve: list[dict[str, float]] = field(default_factory=list)


def tune(
    model: str,
    data: Sequence[str],
    settings: Tuning,
    *,
    out: Path,
    reads: Sequence[str | Path] = (),
    record: Callable[[Tuned], None] = lambda _: None,
    split: str = "train",
    report_to: str = "none",
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Fine-tune `model` on the answers in `data` and save it under `out/model`.

    model     checkpoint folder or hub name, with its scaling in its config
    data      what `examples.read` reads; `split` of hub data sets
    reads     what `out` may not be, and not hold, beside model and data
    record    writes `run.json`, once the model is there; what it holds under "sft" is Tuned
    progress  called at every step with done, total, loss, seconds

    A killed run resumes from its last whole checkpoint; a finished one is returned as it is.
    Raises DataError for rows that can't be learnt, OutputError for an `out` of another run, one
    that another process holds, and a full disk, TrainingError when the loss is not finite or
    packed rows would see each other.
    """
    with (
        claims.output(out, "sft", reads=[model, *data, *reads]) as held,
        files.writing_errors(out),
    ):
        return _tune(
            model, data, settings, held=held, record=record, split=split, report_to=report_to,
            progress=progress, say=say,
        )  # fmt: skip


def finished(out: Path) -> Tuned | None:
    """What a finished run left in its folder, None before its end."""
    if not (out / RESULT).is_file():
        return None
    return records.read_as(out / RESULT, Run, Tuned, inside="sft")


def _tune(
    model: str,
    data: Sequence[str],
    settings: Tuning,
    *,
    held: claims.Output,
    record: Callable[[Tuned], None],
    split: str,
    report_to: str,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Tuned:
    """Check everything, claim the folder, train and save."""
    out = held.folder
    config, tokenizer = models.load_config(model), models.load_tokenizer(model)
    window = rope.window_of(config, tokenizer)
    rows = _read(data, tokenizer, settings, window, split, say)
    asked = {
        "settings": files.sha256_of(settings.model_dump(mode="json")),
        "model": model,
        **digests.of_model(model),
        "data": rows.fingerprint(),
    }
    held.require(asked)
    finished_before = finished(out)
    if finished_before is not None:
        say(f"{out} holds this run, finished: nothing to do")
        return finished_before

    before, precision = _window_settings(config), models.check(model, config).precision
    network = _network(model, config, settings)
    arguments = _arguments(settings, out, _row_limit(settings, window), report_to)
    steps = settings.steps or math.ceil(len(rows.rows) * settings.epochs / settings.rows_per_step)
    checkpoints.require_room(out, network, steps=steps, save_steps=settings.save_steps)
    held.claim(asked)
    checkpoint = checkpoints.last_whole(out / "checkpoints")
    if checkpoint:
        say(f"resuming behind step {checkpoint.resumed_at[-1]}")
    began = time.perf_counter()
    trainer = _train(network, tokenizer, rows, arguments, checkpoint, progress)
    done = Tuned(
        settings=settings.model_dump(mode="json"),
        window=window,
        rope_parameters=before["rope_parameters"],
        data=list(data),
        data_sha256=asked["data"],
        rows=len(rows.rows),
        too_long=rows.too_long,
        longest=rows.longest,
        tokens=rows.tokens,
        learnt=rows.learnt,
        steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        peak_memory_bytes=provenance.peak_memory_bytes(),
        resumed_at=checkpoint.resumed_at if checkpoint else [],
        computation=provenance.Computation.of(
            network, "bfloat16" if trainer.args.bf16 else "float32"
        ).model_dump(),
        saved_precision=precision,
        curve=[entry for entry in trainer.state.log_history if "loss" in entry],
    )
    if trainer.is_world_process_zero():
        whole = adapters.merge(trainer.accelerator.unwrap_model(network))
        done.saved_precision = _save(whole, tokenizer, out, window, precision, before)
        record(done)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return done


def _row_limit(settings: Tuning, window: int) -> int:
    """Most tokens of a row. Raises RecipeError where more is asked than the window."""
    if settings.max_tokens and settings.max_tokens > window:
        raise RecipeError(f"max_tokens {settings.max_tokens:,} exceeds the window of {window:,}")
    return min(settings.max_tokens or window, window)


def _read(
    data: Sequence[str],
    tokenizer: Any,
    settings: Tuning,
    window: int,
    split: str,
    say: Callable[[str], None],
) -> examples.Examples:
    """Rows of the conversations; how many there are is said."""
    longest = _row_limit(settings, window)
    say("reading the conversations")
    rows = examples.read(data, tokenizer, max_tokens=longest, split=split)
    kept = f"{len(rows.rows):,} rows, {rows.tokens:,} tokens, {rows.learnt:,} of them learnt"
    left_out = f"; {rows.too_long:,} above {longest:,} tokens left out" if rows.too_long else ""
    say(f"{kept}{left_out}")
    return rows


def _network(model: str, config: Any, settings: Tuning) -> Any:
    """The model with a gradient on what is trained."""
    torch.manual_seed(settings.seed)
    network = models.load(model, config, attention=settings.attention)
    if settings.packing:
        check_packing(network)
    weights = Training(
        trainable=settings.trainable,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
    )
    adapters.prepare(network, weights)
    return network


def _train(
    network: Any,
    tokenizer: Any,
    rows: examples.Examples,
    arguments: SFTConfig,
    checkpoint: checkpoints.Whole | None,
    progress: Progress | None,
) -> SFTTrainer:
    """Train to the end, from a checkpoint where there is one; the trainer that did it."""
    resumed = checkpoint.resumed_at if checkpoint else []
    trainer = _Trainer(
        model=network,
        args=arguments,
        train_dataset=_dataset(rows),
        processing_class=tokenizer,
        callbacks=[checkpoints.MarkComplete(resumed), _Report(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    return trainer


def _save(
    whole: Any, tokenizer: Any, out: Path, window: int, precision: str, before: dict[str, Any]
) -> str:
    """Write `model/` and give its precision.

    before  window and RoPE of the model that it began with

    Raises TrainingError where these have changed.
    """
    precision = models.save(whole, tokenizer, out / "model", window, dtype=precision)
    after = _window_settings(models.load_config(str(out / "model")))
    if after != before:
        raise TrainingError(f"{out / 'model'} lost its window: {after} instead of {before}")
    return precision


class _Trainer(SFTTrainer):
    """TRL's, which stops when the loss is lost, and writes no card of its own."""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        """TRL's loss on answers. Raises TrainingError when it is not finite."""
        loss = super().compute_loss(*given, **named)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise TrainingError(
                f"loss is {value.item()} at step {self.state.global_step + 1}: lower learning_rate"
            )
        return loss

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """The card is written at export, from the record."""


class _Report(TrainerCallback):
    """Tell the caller about every step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given.get("logs") or {}
        if self._progress and "loss" in logs:
            now = time.perf_counter()
            self._progress(
                {
                    "done": state.global_step,
                    "total": state.max_steps,
                    "loss": logs["loss"],
                    "seconds": now - self._began,
                }
            )
            self._began = now


def check_packing(network: Any) -> None:
    """Refuse to pack for a model whose packed rows are not what they are alone.

    Two short rows are packed as the Trainer will pack them; the logits of the second have to be
    those it has by itself. Raises TrainingError that names model type and attention.
    """
    size = 16
    ids = (torch.arange(2 * size) * 7 + 3) % network.config.vocab_size
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    packed = dict(collate([{"input_ids": ids.tolist(), "seq_lengths": [size, size]}]))
    packed.pop("labels")
    network.eval()
    with torch.no_grad():
        given = {
            key: value.to(network.device) if torch.is_tensor(value) else value
            for key, value in packed.items()
        }
        together_TV = network(**given, use_cache=False).logits[0, size:]
        alone_BT = ids[None, size:].to(network.device)
        alone_TV = network(
            alone_BT, attention_mask=torch.ones_like(alone_BT), use_cache=False
        ).logits[0]
    network.train()
    off = ((together_TV - alone_TV).abs().max() / alone_TV.std()).item()
    if not off < SEEN:
        raise TrainingError(
            f"packing: model type {network.config.model_type!r} with attention "
            f"{network.config._attn_implementation!r} lets packed rows see each other (logits "
            f"differ by {off:.2g} of their spread): set packing=false, or another attention"
        )


def _dataset(rows: examples.Examples) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [row.tokens_T for row in rows.rows],
            "labels": [row.labels_T for row in rows.rows],
        }
    )


def _window_settings(config: Any) -> dict[str, Any]:
    """What makes a model's window: RoPE and the number of positions."""
    return {
        "rope_parameters": dict(config.rope_parameters or {}),
        "max_position_embeddings": config.max_position_embeddings,
    }


def _arguments(settings: Tuning, out: Path, longest: int, report_to: str) -> SFTConfig:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.rows_per_step % ranks:
        raise RecipeError(
            f"rows_per_step {settings.rows_per_step} does not divide among {ranks} processes"
        )
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.rows_per_step // ranks,
        packing=settings.packing,
        max_length=longest if settings.packing else None,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.dtype == "bfloat16" or (settings.dtype == "auto" and gpu),
        use_cpu=not gpu,
        gradient_checkpointing=False,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=checkpoints.KEPT,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=report_to,
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
