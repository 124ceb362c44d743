"""Configurations of other trainers in which rows with jumps arrive as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from endprompt.errors import RecipeError, nearest
from endprompt.record import RowFiles


def require_known(trainer: str) -> None:
    """Raise RecipeError for a trainer that there is no configuration of."""
    if trainer not in TRAINERS:
        known = ", ".join(TRAINERS)
        raise RecipeError(f"no trainer {trainer!r}{nearest(trainer, TRAINERS)}: {known}")


def made_for(
    trainer: str, *, rows: Path, base: Path | None, record: RowFiles, form: str
) -> dict[str, str]:
    """Texts of a trainer's configuration by file name, for the folder of the rows.

    base  the scaled base; None: the user scales the base as the text says
    """
    model = str(base) if base else record.base
    texts = TRAINERS[trainer](model, str(rows), record, form)
    return {name: text if base else f"{UNSCALED}\n{text}" for name, text in texts.items()}


Texts = dict[str, str]
UNSCALED = "# the model named here is not scaled: give --scaled-base, and name that folder"


def _load(rows: str, form: str) -> str:
    if form == "arrow":
        return f'datasets.load_from_disk("{rows}")'
    kind = "json" if form == "jsonl" else form
    return f'datasets.load_dataset("{kind}", data_files="{rows}/train-*.{form}", split="train")'


def _trl(model: str, rows: str, record: RowFiles, form: str) -> Texts:
    text = f'''import datasets
from transformers import default_data_collator
from trl import SFTConfig, SFTTrainer

from endprompt import GuardCallback

trainer = SFTTrainer(
    "{model}",
    args=SFTConfig(
        output_dir="out",
        max_length={record.row_tokens},
        packing=False,
        padding_free=False,
        remove_unused_columns=False,  # else TRL drops position_ids
        dataset_kwargs={{"skip_prepare_dataset": True}},
    ),
    train_dataset={_load(rows, form)},
    data_collator=default_data_collator,  # TRL's own drops position_ids
    callbacks=[GuardCallback(target={record.target}, rows="{rows}")],
)
trainer.train()
'''
    return {"train_trl.py": text}


def _axolotl(model: str, rows: str, record: RowFiles, form: str) -> Texts:
    kind = {"jsonl": "json"}.get(form, form)
    text = f"""base_model: {model}
plugins:
  - endprompt.trainers.axolotl.GuardPlugin   # reads target and rows from datasets below
datasets:
  - path: {rows}
    ds_type: {kind}
    type:            # empty: the rows are tokenised
sequence_len: {record.row_tokens}
sample_packing: false   # packing cuts a row at its jump
pad_to_sequence_len: false
flash_attention: false
remove_unused_columns: false
overrides_of_model_config:
  max_position_embeddings: {record.target}
  rope_parameters: {json.dumps(record.rope_parameters)}
micro_batch_size: 1
output_dir: out
"""
    return {"axolotl.yaml": text}


def _llamafactory(model: str, rows: str, record: RowFiles, form: str) -> Texts:  # noqa: ARG001
    text = f"""model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: full
template: empty
dataset: rows               # asked for, and not read
tokenized_path: {rows}      # rows in --format arrow
cutoff_len: {record.row_tokens}
packing: false
neat_packing: false         # its mask hides the prefix from the terminal
flash_attn: sdpa
output_dir: out
"""
    script = f'''# llamafactory-cli takes no callback: this does, and reads llamafactory.yaml
import yaml
from llamafactory.train.tuner import run_exp

from endprompt import GuardCallback

with open("{rows}/llamafactory.yaml") as file:
    settings = yaml.safe_load(file)
run_exp(settings, callbacks=[GuardCallback(target={record.target}, rows="{rows}")])
'''
    return {"llamafactory.yaml": text, "train_llamafactory.py": script}


def _swift(model: str, rows: str, record: RowFiles, form: str) -> Texts:  # noqa: ARG001
    text = f"""model: {model}
external_plugins: {rows}/guard_swift.py
callbacks: endprompt
cached_dataset: {rows}      # rows in --format arrow
truncation_strategy: split  # any other tokenises the rows again, and fails
max_length: {record.row_tokens}
max_model_len: {record.target}
tuner_type: full
packing: false
padding_free: false
sequence_parallel_size: 1   # above 1, positions are overwritten
attn_impl: sdpa
output_dir: out
"""
    plugin = f'''from swift.callbacks import callbacks_map

from endprompt import GuardCallback

callbacks_map["endprompt"] = lambda args, trainer: GuardCallback(
    target={record.target}, rows="{rows}"
)
'''
    return {"swift.yaml": text, "guard_swift.py": plugin}


def _unsloth(model: str, rows: str, record: RowFiles, form: str) -> Texts:
    text = f'''from unsloth import FastLanguageModel  # first, as Unsloth asks for

import datasets
from transformers import Trainer, TrainingArguments, default_data_collator

from endprompt import GuardCallback

model, tokenizer = FastLanguageModel.from_pretrained(
    "{model}",
    max_seq_length={record.target},  # the length of its RoPE table, not of the rows
)
Trainer(
    model,
    TrainingArguments("out", remove_unused_columns=False),
    train_dataset={_load(rows, form)},
    data_collator=default_data_collator,
    callbacks=[GuardCallback(target={record.target}, rows="{rows}")],
).train()
'''
    return {"train_unsloth.py": text}


def _torchtitan(model: str, rows: str, record: RowFiles, form: str) -> Texts:
    text = f'''# For the loop of a trainer that is PyTorch alone.
import datasets
import torch

import endprompt

rows = {_load(rows, form)}.with_format("torch")
loader = torch.utils.data.DataLoader(rows, batch_size=1)
# model: {model}, its RoPE: {json.dumps(record.rope_parameters)}
# before the first step:
# endprompt.guard(model, next(iter(loader)), target={record.target}, rows="{rows}")
'''
    return {"train_torchtitan.py": text}


TRAINERS: dict[str, Callable[[str, str, RowFiles, str], Texts]] = {
    "trl": _trl,
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "ms-swift": _swift,
    "unsloth": _unsloth,
    "torchtitan": _torchtitan,
}
