"""Packed rows reach the model as they should: documents kept apart where that is asked."""

from __future__ import annotations

import numpy as np
import pytest

from endprompt.cues import CueWriter
from endprompt.data.rows import TERMINAL, RowSource, collate
from endprompt.data.tokens import TokenDocuments
from endprompt.errors import RecipeError
from endprompt.recipe import Kind, Rows, Terminal

EOS = 1


def source(tokenizer, *, document_mask: bool = True, eos: int | None = EOS) -> RowSource:
    arrays = [[*range(10, 10 + n), EOS] for n in (3, 5, 6, 4, 9, 2)]
    docs = TokenDocuments.from_arrays(arrays, eos=eos)
    kinds = (Kind(terminal=Terminal(cue="ep3", place="end")),)
    rows = Rows(tokens=18, pack="documents", document_mask=document_mask, kinds=kinds)
    return RowSource(docs, rows, CueWriter(tokenizer), target=64, seed=0, count=4)


def test_tokens_see_their_own_document_and_terminals_see_all(tokenizer) -> None:
    rows = source(tokenizer)
    examples = [rows[i] for i in range(len(rows))]
    batch = collate(examples)
    visible = batch["visible"].numpy()
    assert visible.shape == (
        len(examples),
        1,
        batch["input_ids"].shape[1],
        batch["input_ids"].shape[1],
    )
    for example, allowed in zip(examples, visible[:, 0], strict=True):
        ids, kinds = example["input_ids"], example["segments"]
        for q in range(allowed.shape[0]):
            for k in range(allowed.shape[1]):
                if q >= len(ids):
                    expected = q == k
                elif k > q or k >= len(ids):
                    expected = False
                elif kinds[q] == TERMINAL:
                    expected = True
                else:  # no end of a document between the two
                    expected = EOS not in ids[k:q]
                assert allowed[q, k] == expected


def test_rows_that_do_not_ask_for_it_carry_no_mask_of_their_own(tokenizer) -> None:
    rows = source(tokenizer, document_mask=False)
    assert "visible" not in collate([rows[0], rows[1]])
    assert rows.left_out_tokens == 0
    assert rows.epochs > 0


def test_documents_without_an_end_cannot_be_kept_apart(tokenizer) -> None:
    with pytest.raises(RecipeError, match="end-of-sequence"):
        source(tokenizer, eos=None)


def test_short_rows_are_padded_and_weigh_nothing(tokenizer) -> None:
    rows = source(tokenizer)
    examples = [rows[i] for i in range(len(rows))]
    assert len({len(example["input_ids"]) for example in examples}) > 1
    batch = collate(examples)
    for example, mask, weights in zip(
        examples, batch["attention_mask"], batch["loss_weights"], strict=True
    ):
        length = len(example["input_ids"])
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert np.all(weights[length:].numpy() == 0)
