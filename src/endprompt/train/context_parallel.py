"""A row cut among ranks, for rows that no device holds alone: Accelerate's context parallelism.

Attention goes round the ranks and is causal by a token's place in the row, whatever its position.
Every other step is one token's own, so that a rank needs its columns and what they predict.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from endprompt.errors import TrainingError
from endprompt.recipe import Recipe


def ranks_of_a_row() -> int:
    """Processes that hold a row together, as set for `accelerate launch`; 1 without."""
    return _size("CP")


def readers() -> int:
    """Processes, or groups of them, that are given rows of their own."""
    return int(os.environ.get("WORLD_SIZE", "1")) // ranks_of_a_row()


def require_cuttable(recipe: Recipe) -> None:
    """Raise TrainingError where rows are to be cut and their attention is not plainly causal."""
    if _size("SP") > 1:
        raise TrainingError(
            f"sp_size is {_size('SP')}: rows are cut by context parallelism only, "
            "set sp_size to 1 and cp_size instead (endprompt accelerate fsdp2-cp)"
        )
    if ranks_of_a_row() == 1:
        return
    causal = (
        f"cp_size is {ranks_of_a_row()}: a row that is cut among ranks has causal attention, not"
    )
    if recipe.training.attention == "shifted":
        raise TrainingError(f"{causal} shifted: set cp_size to 1 or training.attention to full")
    if recipe.training.prefix_loss != "text":
        raise TrainingError(
            f"cp_size is {ranks_of_a_row()}, and the teacher reads whole rows: set "
            "cp_size to 1 or training.prefix_loss to text"
        )
    if recipe.training.label_weights != "rows":
        raise TrainingError(
            f"cp_size is {ranks_of_a_row()}, and short contexts are cut out of whole rows: set "
            "cp_size to 1 or training.label_weights to rows"
        )
    if recipe.rows.gaps == "filled":
        raise TrainingError(
            f"cp_size is {ranks_of_a_row()}, and keys in gaps are found from whole rows: set "
            "cp_size to 1 or rows.gaps to empty"
        )
    if recipe.rows.document_mask:
        raise TrainingError(
            f"{causal} documents kept apart: set cp_size to 1 or rows.document_mask to off"
        )


def split_row(
    accelerator: Any, columns: dict[str, Tensor], ranks: int
) -> tuple[Callable[[], Any], dict[str, Tensor]]:
    """The columns [B, T] of whole rows, and the context inside of which a rank has its part.

    columns  as `train.loss.aligned` gives them. Rows are padded to a multiple of twice the ranks
             (each has a part near the head and one near the tail): on the right, where nothing
             before looks, masked and weighed nothing.
    """
    missing = -columns["input_ids"].shape[1] % (2 * ranks)
    whole = {name: F.pad(column_BT, (0, missing)) for name, column_BT in columns.items()}
    buffers = list(whole.values())
    context = partial(
        accelerator.maybe_context_parallel,
        buffers=buffers,
        buffer_seq_dims=[1] * len(buffers),
        no_restore_buffers=set(buffers),
    )
    return context, whole


def _size(kind: str) -> int:
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return 1
    return int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1"))
