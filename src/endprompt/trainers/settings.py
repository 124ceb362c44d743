"""Configurations of other trainers in which rows with jumps arrive as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from string import Template

from endprompt.errors import RecipeError, nearest
from endprompt.record import RowFiles


def require_known(trainer: str) -> None:
    """Raise RecipeError for a trainer that there is no configuration of."""
    if trainer not in TRAINERS:
        known = ", ".join(TRAINERS)
        raise RecipeError(f"no trainer {trainer!r}{nearest(trainer, TRAINERS)}: {known}")


def require_scaling(trainer: str, rope_type: str) -> None:
    """Raise RecipeError for a scaling of RoPE that a trainer's own models do not have."""
    if trainer == "torchtitan" and rope_type not in ("default", "llama3"):
        raise RecipeError(
            f"torchtitan has no RoPE of type {rope_type!r}: give --set rope.scaling=llama3, or ntk"
        )


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
sample_packing: false   # packing writes positions anew
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
neat_packing: false         # with FlashAttention 2 it drops the mask
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
truncation_strategy: split  # with lazy_tokenize: the rows are taken as they are
lazy_tokenize: true
max_length: {record.row_tokens}
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


TORCHTITAN = Template("""# For your config_registry: the rows as a data loader, the RoPE of $model.
from dataclasses import dataclass

import datasets
import torch
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.models.common import ComplexRoPE

ROW_TOKENS = $row_tokens  # training.seq_len: tokens of a row, not the target
TARGET = $target


def rope(head_dim):
    # its table is as long as the target: positions reach the last entry
    return ComplexRoPE.Config(
        dim=head_dim,
        max_seq_len=TARGET,
        $rope,
    )


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, dp_rank=0, dp_world_size=1):
        rows = $load
        self.rows = rows.shard(dp_world_size, dp_rank).with_format("torch")

    def __iter__(self):
        for row in self.rows:
            # labels of torchtitan stand one place earlier than those of Transformers
            labels = torch.cat([row["labels"][1:], torch.tensor([-100])])
            yield {"input": row["input_ids"], "positions": row["position_ids"]}, labels


class RowsDataLoader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config, *, dp_world_size, dp_rank, local_batch_size, **_):
        rows = Rows(dp_rank, dp_world_size)
        super().__init__(rows, dp_rank, dp_world_size, batch_size=local_batch_size)


@torch.no_grad()
def check(model, batch):
    # endprompt.guard knows models of Transformers alone; before the first step, this stops a row
    # that is cut at its jump, or that has none
    ids, positions = batch["input"], batch["positions"]
    steps = positions[0].diff()
    start = int(steps.argmax()) + 1
    if int(steps.max()) <= 1 or int(positions.max()) >= TARGET:
        raise RuntimeError("torchtitan: no jump in the first row, or one past the target")
    other = ids.clone()
    other[0, :start] = (other[0, :start] + 1) % int(ids.max() + 1)
    masks = model.get_attention_masks(positions=positions)
    before, after = (
        model(each, attention_masks=masks, positions=positions)[0, start] for each in (ids, other)
    )
    if torch.equal(before, after):
        raise RuntimeError("torchtitan: the first row is cut at its jump")
""")


def _torchtitan(model: str, rows: str, record: RowFiles, form: str) -> Texts:
    written = record.rope_parameters
    rope = f'theta={written["rope_theta"]!r}, scaling="none"'
    if written["rope_type"] == "llama3":
        rope = f"""theta={written["rope_theta"]!r},
        scaling="llama",
        scaling_factor={written["factor"]!r},
        low_freq_factor={written["low_freq_factor"]!r},
        high_freq_factor={written["high_freq_factor"]!r},
        original_max_position_embeddings={written["original_max_position_embeddings"]!r}"""
    text = TORCHTITAN.substitute(
        model=model,
        row_tokens=record.row_tokens,
        target=record.target,
        rope=rope,
        load=_load(rows, form),
    )
    return {"torchtitan_rows.py": text}


TRAINERS: dict[str, Callable[[str, str, RowFiles, str], Texts]] = {
    "trl": _trl,
    "axolotl": _axolotl,
    "llamafactory": _llamafactory,
    "ms-swift": _swift,
    "unsloth": _unsloth,
    "torchtitan": _torchtitan,
}
