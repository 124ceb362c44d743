"""Rows cut among ranks: which columns are cut, and which rows can't be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_loss import a_batch

from endprompt import recipe
from endprompt.errors import TrainingError
from endprompt.train import context_parallel
from endprompt.train.loss import aligned


def launched(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """The environment that `accelerate launch` makes."""
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("WORLD_SIZE", "8")
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", str(size))


def test_every_column_is_cut_and_a_token_keeps_what_is_predicted_from_it() -> None:
    given: dict[str, Any] = {}
    accelerator = SimpleNamespace(maybe_context_parallel=lambda **named: given.update(named))
    batch = a_batch(length=37)
    context, columns = context_parallel.split_row(accelerator, aligned(batch), 2)
    context()
    assert [id(each) for each in given["buffers"]] == [id(each) for each in columns.values()]
    assert given["no_restore_buffers"] == set(columns.values())
    assert given["buffer_seq_dims"] == [1] * len(columns)
    assert all(column.shape == (2, 40) for column in columns.values())
    rest = {name: column[:, 36:] for name, column in columns.items()}
    assert not rest["label_weights"].any(), "nothing is predicted past the end"
    used = batch["loss_weights"] * batch["attention_mask"]
    for token in (0, 27, 35):
        for name, source in (
            ("labels", batch["input_ids"]),
            ("label_weights", used),
            ("label_segments", batch["segments"]),
        ):
            torch.testing.assert_close(columns[name][:, token], source[:, token + 1])


def test_ranks_that_hold_a_row_together_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, cp=4)
    assert (context_parallel.ranks_of_a_row(), context_parallel.readers()) == (4, 2)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "false")
    assert (context_parallel.ranks_of_a_row(), context_parallel.readers()) == (1, 8)


@pytest.mark.parametrize(
    ("sizes", "changes", "told"),
    [
        ({"cp": 2}, {"training.attention": "shifted"}, "cp_size is 2.*not shifted"),
        ({"cp": 2}, {"rows.document_mask": True}, "cp_size is 2.*documents kept apart"),
        ({"cp": 2}, {"training.prefix_loss": "base"}, "cp_size is 2.*the teacher reads whole rows"),
        ({"cp": 2}, {"rows.gaps": "filled"}, "cp_size is 2.*keys in gaps"),
        ({"sp": 2}, {}, "sp_size is 2"),
    ],
)
def test_rows_without_plain_causal_attention_are_not_cut(
    sizes: dict[str, int], changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe.load("full").replace(changes)
    context_parallel.require_cuttable(chosen)
    launched(monkeypatch, **sizes)
    with pytest.raises(TrainingError, match=told):
        context_parallel.require_cuttable(chosen)
