"""The guard: stops any trainer whose first batch would train no long distance.

It looks at the batch as the trainer hands it to the model, and makes that very call: a trainer
may drop positions, cut a row at its jump, or leave RoPE unscaled, and the loss falls all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from endprompt import rope
from endprompt.data import row_files
from endprompt.data.encoder import Encoder
from endprompt.errors import ProbeError
from endprompt.io import records
from endprompt.models import families
from endprompt.record import RowFiles
from endprompt.train import position_check

TRAINERS = {
    "axolotl": "Axolotl",
    "llamafactory": "LLaMA-Factory",
    "swift": "ms-swift",
    "unsloth": "Unsloth",
    "torchtitan": "torchtitan",
    "megatron": "Megatron",
    "trl": "TRL",
    "transformers.trainer": "Transformers' Trainer",
}
"""Modules by which a trainer is known; those that build on others stand before them."""
ROW = "hand over each row whole, one a row of the batch: packing and truncation off"
REMEDIES: dict[str, dict[str, str]] = {
    "positions": {
        "": "hand position_ids of the batch to the model",
        "TRL": "give SFTTrainer data_collator=transformers.default_data_collator and set "
        "remove_unused_columns=False, padding_free=False",
        "Transformers' Trainer": "set remove_unused_columns=False and "
        "data_collator=default_data_collator",
        "Axolotl": "set sample_packing: false and remove_unused_columns: false",
        "ms-swift": "set sequence_parallel_size 1 and padding_side right",
        "Unsloth": "set remove_unused_columns=False and data_collator=default_data_collator",
        "Megatron": "none: its RoPE is made from the index; train elsewhere",
    },
    "row": {
        "": ROW,
        "TRL": "set packing=False, padding_free=False and max_length to the rows' tokens",
        "Axolotl": "set sample_packing: false and sequence_len to the rows' tokens",
        "LLaMA-Factory": "set packing: false, neat_packing: false and cutoff_len to the rows' "
        "tokens",
        "ms-swift": "set packing false, padding_free false and max_length to the rows' tokens",
    },
    "reach": {
        "": "hand attention_mask, ones for every token, to the model beside position_ids",
        "TRL": "set padding_free=False, packing=False, and hand attention_mask to the model "
        "(data_collator=transformers.default_data_collator, remove_unused_columns=False)",
        "Axolotl": "set sample_packing: false",
        "LLaMA-Factory": "set neat_packing: false and packing: false",
        "ms-swift": "set padding_free false and packing false",
    },
    "rope": {
        "": "load the folder of `endprompt rows --scaled-base` as the model",
        "Axolotl": "set overrides_of_model_config.rope_parameters, or base_model to the folder of "
        "`endprompt rows --scaled-base`",
        "LLaMA-Factory": "leave rope_scaling away, and load the folder of `endprompt rows "
        "--scaled-base` as the model",
        "ms-swift": "leave rope_scaling and max_model_len away, and load the folder of "
        "`endprompt rows --scaled-base` as the model",
        "Unsloth": "set max_seq_length to the target, and load the folder of "
        "`endprompt rows --scaled-base`",
    },
    "tokenizer": {"": "use the tokenizer of the base that the rows were made for"},
}
"""Setting to change, by fault and trainer; "" for every other."""


def trainer_name() -> str:
    """Name of the trainer that this call runs in, "" for a loop of the user's own."""
    modules = set()
    frame: Any = sys._getframe()
    while frame is not None:
        modules.add(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    for start, name in TRAINERS.items():
        if any(module == start or module.startswith(f"{start}.") for module in modules):
            return name
    return ""


def guard(
    model: Any,
    batch: Mapping[str, Any],
    *,
    target: int,
    rows: str | Path | None = None,
    tokenizer: Any = None,
    trainer: str | None = None,
) -> None:
    """Stop unless a batch would train distances up to `target`. Call it before the first step.

    model      as the trainer calls it: `model(**batch)`; wrappers and adapters are looked through
    batch      the first real batch, what the trainer hands to the model
    rows       folder of `endprompt rows`: then every row has to be one of it, unchanged, and the
               model has to have the scaling that the rows were made for
    tokenizer  its ids are compared with those of the rows
    trainer    None: it is found

    Raises ProbeError that names the trainer, the fault, and the setting to change; DataError for a
    folder without rows.
    """
    name = trainer_name() if trainer is None else trainer
    record = None if rows is None else records.read(Path(rows) / row_files.MANIFEST, RowFiles)
    stop = _Stop(name)
    if record is not None:
        _require_belonging(record, target, tokenizer, stop)
    ids_BT = batch.get("input_ids")
    if ids_BT is None:
        raise ProbeError("the batch has no input_ids: hand over what the model is called with")
    positions_BT = batch.get("position_ids")
    if record is not None and rows is not None:
        _require_whole_rows(record, Path(rows), ids_BT, batch.get("attention_mask"), stop)
    if positions_BT is None:
        raise stop(
            "positions",
            "the model is called without position_ids: every jump is lost, and "
            "the run would train the control without jumps",
        )
    _require_positions(positions_BT, ids_BT, target, stop)
    if record is not None and rows is not None:
        _require_own_positions(Path(rows), ids_BT, positions_BT, batch.get("attention_mask"), stop)
    _require_scaled(_bare(model), record, target, stop)
    _require_reach(model, batch, positions_BT, stop)


class GuardCallback(TrainerCallback):
    """The guard for everything that is built on Transformers' Trainer.

    It waits for the first forward pass in training and looks at what the model is called with.
    """

    def __init__(self, *, target: int, rows: str | Path | None = None) -> None:
        self._target, self._rows = target, rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Watch for the first call of the model."""
        model, tokenizer = given["model"], given.get("processing_class")

        def first_call(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            handle.remove()
            batch = dict(named)
            if arguments:
                batch["input_ids"] = arguments[0]
            guard(module, batch, target=self._target, rows=self._rows, tokenizer=tokenizer)

        handle = model.register_forward_pre_hook(first_call, with_kwargs=True, prepend=True)


class _Stop:
    """Makes the error about a fault, in words for the trainer that it was found in."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer

    def __call__(self, fault: str, said: str) -> ProbeError:
        remedies = REMEDIES[fault]
        remedy = remedies.get(self.trainer, remedies[""])
        return ProbeError(f"{self.trainer or 'this training loop'}: {said}; {remedy}")


def _require_belonging(record: RowFiles, target: int, tokenizer: Any, stop: _Stop) -> None:
    if record.target != target:
        raise ProbeError(
            f"the rows were made for {record.target} tokens and the target is {target}: "
            "write the rows again, or change the target"
        )
    if tokenizer is not None and Encoder(tokenizer).digest != record.tokenizer:
        raise stop("tokenizer", f"the tokenizer is not that of the rows ({record.base})")


def _lengths(ids_BT: Tensor, mask_BT: Any) -> list[int]:
    """Tokens of each row that are not padding on the right."""
    if mask_BT is None or getattr(mask_BT, "ndim", 0) != 2:
        return [ids_BT.shape[1]] * len(ids_BT)
    return [int(n) for n in mask_BT.sum(-1)]


def _require_whole_rows(
    record: RowFiles, rows: Path, ids_BT: Tensor, mask_BT: Any, stop: _Stop
) -> None:
    known = set(np.load(rows / row_files.HASHES)[:, 0].tolist())
    for index, length in enumerate(_lengths(ids_BT, mask_BT)):
        if length != record.row_tokens:
            how = "cut short" if length < record.row_tokens else "packed with others"
            raise stop(
                "row",
                f"row {index} of the batch has {length} tokens and the rows of {rows} "
                f"{record.row_tokens}: it was {how}",
            )
        if row_files.hash_of(ids_BT[index, :length].cpu().numpy()) not in known:
            raise stop(
                "row",
                f"row {index} of the batch is none of {rows}: its tokens were changed, or "
                "it comes from another data set",
            )


def _require_positions(positions_BT: Tensor, ids_BT: Tensor, target: int, stop: _Stop) -> None:
    if positions_BT.shape != ids_BT.shape:
        raise stop(
            "positions",
            f"position_ids are {list(positions_BT.shape)} and input_ids {list(ids_BT.shape)}",
        )
    last = int(positions_BT.max())
    if last >= target:
        raise stop("positions", f"the last position is {last}, past the target of {target} tokens")
    if int(positions_BT.diff().max()) <= 1:
        raise stop(
            "positions",
            f"no row has a jump and the last position is {last} of {target - 1}: "
            "positions were overwritten, and the run would train the control "
            "without jumps",
        )


def _require_own_positions(
    rows: Path, ids_BT: Tensor, positions_BT: Tensor, mask_BT: Any, stop: _Stop
) -> None:
    known: dict[int, set[int]] = {}
    for tokens, places in np.load(rows / row_files.HASHES).tolist():
        known.setdefault(tokens, set()).add(places)
    for index, length in enumerate(_lengths(ids_BT, mask_BT)):
        own = known[row_files.hash_of(ids_BT[index, :length].cpu().numpy())]
        if row_files.hash_of(positions_BT[index, :length].cpu().numpy()) not in own:
            raise stop("positions", f"row {index} of the batch has other positions than in {rows}")


def _require_scaled(network: Any, record: RowFiles | None, target: int, stop: _Stop) -> None:
    config = network.config.get_text_config(decoder=True)
    window = config.max_position_embeddings
    if window < target:
        raise stop(
            "rope",
            f"the model's window is {window} tokens and the target {target}: RoPE is not scaled",
        )
    written = dict(rope.of_global_layers(network.config))
    if record is not None and written != record.rope_parameters:
        raise stop(
            "rope",
            f"the rows were made for RoPE {record.rope_parameters}, and the model has {written}",
        )
    family = families.read(network.config)
    for check in position_check.frequencies(network, family, written, target):
        if not check.passed:
            raise stop(
                "rope",
                f"{check.name}: {check.detail}, so the config says more than the model does",
            )


def _bare(model: Any) -> Any:
    """The causal language model inside wrappers and adapters."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def _require_reach(model: Any, batch: Mapping[str, Any], positions_BT: Tensor, stop: _Stop) -> None:
    """Change every token before the largest jump of a row; what is behind it has to move."""
    steps_BT = positions_BT.diff()
    row = int(steps_BT.max(-1).values.argmax())
    start = int(steps_BT[row].argmax()) + 1
    network = _bare(model)
    other = dict(batch)
    ids_BT = batch["input_ids"].clone()
    ids_BT[row, :start] = (ids_BT[row, :start] + 1) % network.config.vocab_size
    other["input_ids"] = ids_BT
    before, after = (_behind(model, network, given)[row, start] for given in (batch, other))
    if not bool(torch.isfinite(before).all()) or float((before - after).abs().max()) == 0:
        jump = int(steps_BT[row, start - 1])
        raise stop(
            "reach",
            f"row {row} of the batch is cut at its jump: tokens behind index {start} "
            f"(a step of {jump} positions) see nothing before it",
        )


def _behind(model: Any, network: Any, batch: Mapping[str, Any]) -> Tensor:
    """Last hidden states [B, T, H] of the call that a trainer makes."""
    caught: list[Tensor] = []

    def keep(_: Any, __: Any, given: Any) -> None:
        caught.append(given[0] if isinstance(given, tuple) else given.last_hidden_state)

    handle = network.base_model.register_forward_hook(keep)
    try:
        with _same_dropout():
            model(**batch)
    finally:
        handle.remove()
    return caught[-1].float()


@contextmanager
def _same_dropout() -> Generator[None]:
    """The same random state for each call, left as it was behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
