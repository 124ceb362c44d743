"""Axolotl 0.19.0: `use_pose: true` with `sample_packing: true` stops at the first batch.

    pip install axolotl==0.19.0
    python axolotl_use_pose.py

`add_pose_position_ids` (axolotl/utils/trainer.py) adds a number, `sequence_len`, to each row, and
the collator of packed rows concatenates every column.
"""

import random

from axolotl.utils.collators import V2BatchSamplerDataCollatorForSeq2Seq
from axolotl.utils.trainer import add_pose_position_ids

random.seed(0)
row = {"input_ids": list(range(64)), "attention_mask": [1] * 64, "labels": list(range(64))}
row = add_pose_position_ids(row, max_context_len=512)
V2BatchSamplerDataCollatorForSeq2Seq(tokenizer=None)([[row]])
