"""Train one recipe: a Transformers Trainer whose rows, order and loss are ours.

A killed run resumes from its last whole checkpoint and ends with the same weights: rows are a
function of seed and index, and the Trainer restores optimizer, schedule and random state.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from endprompt.cost import flops, memory
from endprompt.cost.memory import TOKENS_AT_ONCE
from endprompt.cues import CueWriter
from endprompt.data.rows import PREFIX, TERMINAL, Documents, RowSource, collate
from endprompt.errors import TrainingError
from endprompt.io import claims, digests, files, provenance, records
from endprompt.models import bf16_attention, families
from endprompt.models import checkpoint as models
from endprompt.recipe import Recipe
from endprompt.record import Training
from endprompt.train import (
    activations,
    adapters,
    attention,
    calibration,
    checkpoints,
    context_parallel,
    gaps,
    position_check,
)
from endprompt.train.loss import Labels, Teacher, aligned, aligned_loss

Progress = Callable[[dict[str, Any]], None]
RESULT = "train.json"
SPIKE, SPIKE_STEPS = 2.0, 8
"""A loss so many times the median of the steps before it is reported, once there are enough."""
log = logging.getLogger(__name__)


@dataclass
class Trained:
    """What a training run leaves: `model/` beside this, written as `train.json`."""

    recipe: dict[str, Any]
    recipe_hash: str
    target: int
    steps: int
    tokens: int
    flops: float
    seconds: float
    peak_memory_bytes: int
    epochs: float
    resumed_at: list[int]
    computation: dict[str, Any]
    """How it was computed (`provenance.Computation`)."""
    saved_precision: str
    """Of the weights in `model/`: that of the base's."""
    curve: list[dict[str, float]]
    position_check: list[dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=provenance.provenance)


def train(
    recipe: Recipe,
    *,
    model: str,
    documents: Documents,
    target: int,
    out: Path,
    fingerprint: str = "",
    reads: Sequence[str | Path] = (),
    report_to: str = "none",
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Extend `model` to `target` tokens by a recipe and save it under `out/model`.

    recipe       amounts resolved (`Recipe.resolve`)
    documents    tokenised documents
    fingerprint  of the documents; a run that was begun with others is refused
    reads        folders that the documents and the recipe come from: `out` may be none of them,
                 and hold none
    progress     called at every step with done, total, loss, prefix_loss, terminal_loss
    callbacks    more of Transformers' own, to watch the model as it learns

    A run that is finished is returned as it is. Raises ProbeError before training when the model
    would not see the far distances, TrainingError when the loss is no longer finite or rows are to
    be cut among ranks and can't be, OutputError for an `out` of another run, one that another
    process holds, and a full disk.
    """
    context_parallel.require_cuttable(recipe)
    with claims.output(out, "train", reads=[model, *reads]) as held, files.writing_errors(out):
        models.load_config(model)  # of a hub's model, its commit is known from here on
        settings = {
            "recipe_hash": recipe.hash(),
            "model": model,
            **digests.of_model(model),
            "target": target,
            "documents": fingerprint,
        }
        held.require(settings)
        if not recipe.trained:
            return finished(out) or _scale(recipe, model, target, out, lambda: held.claim(settings))
        return finished(out) or _train(
            recipe,
            model=model,
            documents=documents,
            target=target,
            out=out,
            claim=lambda: held.claim(settings),
            report_to=report_to,
            progress=progress,
            callbacks=callbacks,
        )


def _scale(
    recipe: Recipe, model: str, target: int, out: Path, claim: Callable[[], None]
) -> Trained:
    """A recipe that trains nothing: the base with its new config, its weights by link."""
    config = models.scaled_config(model, recipe, target)
    precision = models.check(model, models.load_config(model)).precision
    claim()
    models.link(model, config, models.load_tokenizer(model), out / "model", target)
    done = Trained(
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe.hash(),
        target=target,
        steps=0,
        tokens=0,
        flops=0.0,
        seconds=0.0,
        peak_memory_bytes=provenance.peak_memory_bytes(),
        epochs=0.0,
        resumed_at=[],
        computation={},
        saved_precision=precision,
        curve=[],
        position_check=[],
    )
    files.write_json(out / RESULT, done.__dict__)
    return done


def finished(out: Path) -> Trained | None:
    """What a finished training left in its folder, None before its end."""
    if not (out / RESULT).is_file():
        return None
    return records.read_as(out / RESULT, Training, Trained)


def _train(
    recipe: Recipe,
    *,
    model: str,
    documents: Documents,
    target: int,
    out: Path,
    claim: Callable[[], None],
    report_to: str,
    progress: Progress | None,
    callbacks: Sequence[TrainerCallback],
) -> Trained:
    """Check everything, claim the folder, train and save."""
    ready = _load(recipe, model, documents, target)
    amounts, network = recipe.amounts, ready.network
    checkpoints.require_room(out, network, steps=amounts.steps, save_steps=amounts.save_steps)
    claim()
    checkpoint = checkpoints.last_whole(out / "checkpoints")
    resumed = checkpoint.resumed_at if checkpoint else []
    operations = flops.read(ready.config)
    with _tensorboard_in(out / "tensorboard"):
        trainer = RowTrainer(
            model=network,
            args=_arguments(recipe, out, report_to, ready.batches),
            train_dataset=ready.rows,
            data_collator=collate,
            callbacks=[checkpoints.MarkComplete(resumed), _Report(progress), *callbacks],
            teacher=ready.teacher,
            gaps=ready.gaps,
            gain=recipe.training.label_weights == "gain",
            row_tokens=amounts.row_tokens,
            row_flops=flops.row(recipe, operations, False, gap_pairs=ready.gap_pairs).total,
        )
    trainer.remove_callback(PrinterCallback)
    _run(trainer, str(checkpoint.folder) if checkpoint else None, recipe.training.dtype)
    curve = [entry for entry in trainer.state.log_history if "prefix_loss" in entry]
    done = Trained(
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe.hash(),
        target=target,
        steps=amounts.steps,
        tokens=amounts.tokens,
        flops=amounts.rows * flops.row(recipe, operations, gap_pairs=ready.gap_pairs).total,
        seconds=sum(entry["seconds"] for entry in curve),
        peak_memory_bytes=provenance.peak_memory_bytes(),
        epochs=ready.rows.epochs,
        resumed_at=resumed,
        computation=provenance.Computation.of(network, recipe.training.dtype).model_dump(),
        saved_precision=ready.precision,
        curve=curve,
        position_check=[check.as_dict() for check in ready.checks],
    )
    whole = _whole(trainer, ready, recipe, model)
    if whole is not None:
        done.saved_precision = models.save(
            whole, ready.tokenizer, out / "model", target, dtype=done.saved_precision
        )
        files.write_json(out / RESULT, done.__dict__)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return done


@dataclass(frozen=True)
class _Loaded:
    """What a training needs, checked and in memory.

    config     of the scaled model
    teacher    None where no prefix token is distilled
    gaps       what stands in the gaps of rows, None where they are empty
    gap_pairs  query-key pairs of a mean row with keys in gaps
    precision  of the base's stored weights
    checks     the position check on this model
    batches    rows of one forward pass, and passes of a step
    """

    config: Any
    tokenizer: Any
    rows: RowSource
    network: Any
    teacher: Teacher | None
    gaps: gaps.FilledGaps | None
    gap_pairs: float
    precision: str
    checks: list[position_check.Check]
    batches: tuple[int, int]


def _load(recipe: Recipe, model: str, documents: Documents, target: int) -> _Loaded:
    """Rows and model of a training; what is cheap to check is checked first."""
    config = models.scaled_config(model, recipe, target)
    tokenizer = models.load_tokenizer(model)
    base_config = models.load_config(model)
    family = models.family_of(model, base_config)
    amounts, training = recipe.amounts, recipe.training
    if training.attention == "shifted":
        attention.check_length(amounts.row_tokens, training.attention_groups)
    _require_global_layers(family, training.attention, target)
    rows = RowSource(
        documents,
        recipe.rows,
        CueWriter(tokenizer),
        target=target,
        seed=training.seed,
        count=amounts.rows,
    )
    for index in range(min(8, len(rows))):  # what cannot be made is said before the model loads
        rows.row(index)
    precision = models.check(model, base_config).precision
    teacher, bank = _teacher_and_bank(recipe, model, family, rows)
    torch.manual_seed(training.seed)
    network = models.load(model, config)
    wanted = models.scaled_parameters(family, recipe, target)
    checks = position_check.check_positions(network, family, target, wanted=wanted)
    filled = None
    if bank is not None:
        filled = gaps.FilledGaps(network, family, bank)
        checks += position_check.check_gaps(network, family, target, filled)
    position_check.require(checks)
    batches = _make_trainable(network, recipe, config)
    return _Loaded(
        config, tokenizer, rows, network, teacher, filled, rows.gap_pairs(), precision, checks,
        batches,
    )  # fmt: skip


def _teacher_and_bank(
    recipe: Recipe, model: str, family: families.Family, rows: RowSource
) -> tuple[Teacher | None, gaps.Bank | None]:
    """The teacher, and the bank that the base read for gaps; None where not needed."""
    training = recipe.training
    teacher = Teacher(None, training.divergence) if training.prefix_loss == "view" else None
    distils = training.prefix_loss == "base"
    if not distils and rows.filler is None:
        return teacher, None
    dtype = "bfloat16" if training.dtype == "bfloat16" else "float32"
    base = models.load(model, models.load_config(model), dtype=dtype)
    if distils:
        _prefer_matmuls(base, training.dtype)
        teacher = Teacher(base, training.divergence)
    if rows.filler is None:
        return teacher, None
    return teacher, gaps.read(base.to(_device()), family, rows.filler.pieces)


def _prefer_matmuls(network: Any, dtype: str) -> None:
    """Let a model attend by bf16 matmuls where that is faster; rows cut among ranks need SDPA."""
    whole = context_parallel.ranks_of_a_row() == 1
    if dtype == "bfloat16" and whole and _device().type == "cpu":
        bf16_attention.prefer(network)


def _device() -> torch.device:
    """Where this process will train."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _make_trainable(network: Any, recipe: Recipe, config: Any) -> tuple[int, int]:
    """Set what has a gradient, how it attends and what it keeps; give the batches of a step."""
    amounts, training = recipe.amounts, recipe.training
    adapters.prepare(network, training)
    if training.attention == "shifted":
        network.set_attn_implementation(attention.register(training.attention_groups))
    else:
        _prefer_matmuls(network, training.dtype)
    batches = amounts.batches(
        context_parallel.readers(), _tokens_at_once(recipe, flops.read(config))
    )
    activations.choose(
        network,
        whole=bool(training.gradient_checkpointing),
        tokens=batches[0] * amounts.row_tokens,
    )
    return batches


def _run(trainer: Trainer, checkpoint: str | None, dtype: str) -> None:
    """Train to the end, from a checkpoint's folder where there is one."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ValueError as error:
        if "DeepSpeed config values" not in str(error):
            raise
        raise TrainingError(
            "the DeepSpeed config and the recipe disagree: give mixed_precision of the config and "
            f"training.dtype ({dtype}) the same precision ({' '.join(str(error).split())})"
        ) from error


def _whole(trainer: Trainer, ready: _Loaded, recipe: Recipe, model: str) -> Any:
    """The trained model in one piece, LoRA merged, in the process that saves it; None elsewhere."""
    state = models.gathered(ready.network, trainer.accelerator, trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    if state is None:
        return adapters.merge(trainer.accelerator.unwrap_model(ready.network))
    unset_hf_deepspeed_config()  # else ZeRO would spread the model that puts the ranks' together
    whole = models.load(model, ready.config)
    adapters.prepare(whole, recipe.training)
    whole.load_state_dict(state)
    return adapters.merge(whole)


class RowTrainer(Trainer):
    """Rows in the order of their index, the weighted loss, and what a run is watched by in the log.

    teacher                what prefix tokens are distilled from, if they are
    gaps                   what stands in the gaps of rows, where they are filled
    gain                   tokens weigh by what they gain from far context
    row_tokens, row_flops  tokens of a row and operations of training on it, for rates
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        teacher: Teacher | None,
        gaps: gaps.FilledGaps | None,
        gain: bool,
        row_tokens: int,
        row_flops: float,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._teacher = teacher
        if teacher is not None and teacher.model is not None:
            teacher.model.to(self.args.device).eval().requires_grad_(False)
        self._gaps, self._gain = gaps, gain
        self._row_tokens, self._row_flops = row_tokens, row_flops
        self._peak = calibration.matmul_peak(self.args.device, self.args.bf16)
        self._recent: deque[float] = deque(maxlen=4 * SPIKE_STEPS)
        self._segments: torch.Tensor | None = None
        self._loss = torch.zeros((), device=self.args.device)
        self._by_segment = torch.zeros(2, 2, device=self.args.device)
        self._squares = torch.zeros(2, device=self.args.device)
        network: Any = self.model
        head = network.get_output_embeddings()
        head.register_forward_pre_hook(self._watch_gradient)
        self._began = time.perf_counter()

    def _watch_gradient(self, _: Any, given: tuple[Any, ...]) -> None:
        """Add up squares of the gradient that each segment's loss sends into the last layer."""
        (hidden_BTH,) = given
        if self._segments is None or not hidden_BTH.requires_grad:
            return
        segments_BT = self._segments

        def add(gradient_BTH: torch.Tensor) -> None:
            squares_BT = gradient_BTH.float().square().sum(-1)
            for segment in (PREFIX, TERMINAL):
                self._squares[segment] += (squares_BT * (segments_BT == segment)).sum()

        hidden_BTH.register_hook(add)

    @property
    def _rows_per_step(self) -> int:
        return self.get_total_train_batch_size(self.args)

    def get_train_dataloader(self) -> Any:
        """Batches on the host, where it costs no wait to find which labels are trained."""
        loader = super().get_train_dataloader()
        loader.device = None
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(rows)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Sum of loss weights over all micro-batches and ranks of a step."""
        parts = [
            (batch["loss_weights"][:, 1:] * batch["attention_mask"][:, 1:]).sum()
            for batch in batch_samples
        ]
        total = torch.stack(parts).sum().to(device, non_blocking=True)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum() / context_parallel.ranks_of_a_row()
        return total

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One pass over rows whose columns can be cut by now."""
        return super().training_step(model, aligned(inputs), num_items_in_batch)

    def _require_finite(self) -> None:
        """Raise TrainingError on all ranks if a loss of this step is not finite on one of them.

        Once a step, before the last backward pass: DeepSpeed updates the weights within it.
        """
        loss = self.accelerator.reduce(self._loss, "mean").item()
        self._loss.zero_()
        if not math.isfinite(loss):
            step, rows = self.state.global_step, self._rows_per_step
            raise TrainingError(
                f"loss is {loss} at step {step + 1} (rows {step * rows} to "
                f"{(step + 1) * rows - 1}); the weights are those of step {step}: "
                f"lower training.learning_rate or look at these rows"
            )

    def _prepare_context_parallel_inputs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Cut all columns of a row among its ranks: the Trainer knows of its own only."""
        ranks = context_parallel.ranks_of_a_row()
        if ranks == 1:
            return contextlib.nullcontext, inputs
        return context_parallel.split_row(self.accelerator, self._on_device(inputs), ranks)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Columns as they are: for DeepSpeed the Trainer would round loss weights to bf16."""
        labels = Labels.of(inputs).to(self.args.device)
        return self._on_device(inputs) | {"trained": labels}

    def _on_device(self, columns: dict[str, torch.Tensor]) -> dict[str, Any]:
        device = self.args.device
        return {name: column.to(device, non_blocking=True) for name, column in columns.items()}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted mean over the step; ranks are averaged later, hence the factor."""
        columns = dict(inputs)
        labels = columns.pop("trained")
        self._segments = columns["label_segments"]
        try:
            losses = aligned_loss(
                model, columns, labels, self._teacher, self._gaps, gain=self._gain
            )
        finally:
            self._segments = None  # what callbacks ask the model is not training
        total = losses.weight if num_items_in_batch is None else num_items_in_batch
        loss = losses.weighted / total.clamp_min(1e-8) * self.args.world_size
        if losses.balance is not None:
            loss = loss + losses.balance / self.args.gradient_accumulation_steps
        self._loss += loss.detach()
        self._by_segment += losses.by_segment
        if self.accelerator.sync_gradients:
            self._require_finite()
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what a run is watched by; report a loss that leaps.

        Losses of prefix and terminal are nats a trained token; `terminal_gradient_share` is that
        of the terminal in the squared gradient on the last hidden states; rates are of all ranks,
        memory is the peak of this one.
        """
        if "loss" in logs:
            sums, squares = self._by_segment, self._squares
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, "sum")
                squares = self.accelerator.reduce(squares, "sum")
            for name, (total, tokens) in zip(
                ("prefix_loss", "terminal_loss"), sums[[PREFIX, TERMINAL]].tolist(), strict=True
            ):
                logs[name] = total / tokens if tokens else math.nan
            now = time.perf_counter()
            logs["seconds"] = now - self._began
            rate = self._rows_per_step / logs["seconds"]
            logs["tokens_per_second"] = rate * self._row_tokens
            logs["share_of_peak"] = rate * self._row_flops / self._peak / self.args.world_size
            logs["memory_gib"] = _memory_gib()
            whole = float(squares.sum())
            logs["terminal_gradient_share"] = (
                float(squares[TERMINAL]) / whole if whole else math.nan
            )
            self._squares.zero_()
            self._report_spike(logs["loss"])
            self._by_segment.zero_()
            self._began = now
            logs = {key: value for key, value in logs.items() if not math.isnan(value)}
        super().log(logs, start_time)

    def _report_spike(self, loss: float) -> None:
        usual = statistics.median(self._recent) if len(self._recent) >= SPIKE_STEPS else math.inf
        if loss > SPIKE * usual and self.is_world_process_zero():
            step, rows = self.state.global_step, self._rows_per_step
            log.warning(
                "loss %.3f at step %d (rows %d to %d) is %.1f times the median of the %d steps "
                "before it",
                loss, step, (step - 1) * rows, step * rows - 1, loss / usual, len(self._recent),
            )  # fmt: skip
        self._recent.append(loss)


@contextlib.contextmanager
def _tensorboard_in(folder: Path) -> Generator[None]:
    """Keep tensorboard's files from the checkpoints' folder, which goes at the end of a run.

    Transformers' callback reads the variable when it is made; a user's own goes before.
    """
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    os.environ["TENSORBOARD_LOGGING_DIR"] = given or str(folder)
    try:
        yield
    finally:
        if given is None:
            del os.environ["TENSORBOARD_LOGGING_DIR"]


def _memory_gib() -> float:
    """Peak memory of this process, on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return provenance.peak_memory_bytes() / 2**30


class _Report(TrainerCallback):
    """Tell the caller about every step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given.get("logs") or {}
        if self._progress and "seconds" in logs:
            self._progress({"done": state.global_step, "total": state.max_steps, **logs})


def _require_global_layers(family: families.Family, attention: str, target: int) -> None:
    """Raise TrainingError where local layers would not get the mask that they need."""
    span = family.local_span(target)
    if span is None:
        return
    said = f"layers of model type {family.model_type!r} see {span} positions back only"
    if attention == "shifted":
        raise TrainingError(f"{said}, and shifted attention has none: set training.attention full")
    if context_parallel.ranks_of_a_row() > 1:
        raise TrainingError(f"{said}, and a row that is cut among ranks is causal: set cp_size 1")


def _tokens_at_once(recipe: Recipe, decoder: flops.Decoder) -> int:
    """Tokens of short rows in one forward pass."""
    if not torch.cuda.is_available():
        return TOKENS_AT_ONCE
    room = torch.cuda.get_device_properties(0).total_memory
    return memory.tokens_at_once(decoder, room, **recipe.memory())


def _arguments(
    recipe: Recipe, out: Path, report_to: str, batches: tuple[int, int]
) -> TrainingArguments:
    training, amounts = recipe.training, recipe.amounts
    at_once, passes = batches
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=amounts.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=passes,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=training.dtype == "bfloat16",
        use_cpu=not gpu,
        seed=training.seed,
        data_seed=training.seed,
        save_strategy="steps",
        save_steps=amounts.save_steps,
        save_total_limit=checkpoints.KEPT,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
    )
