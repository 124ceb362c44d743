"""Cues and facts of the real job reach the made-up language through a saved tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from endprompt.cues import EP1, EP3, CueWriter
from endprompt.lab.language import CLOSE, END, FIRST, OPEN, SECOND, VALUE, WORDS, document
from endprompt.lab.tokenizer import UNKNOWN, tokenizer
from endprompt.recipe import Recall, Terminal


@pytest.fixture(scope="module")
def cues(tmp_path_factory: pytest.TempPathFactory) -> CueWriter:
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(folder)
    return CueWriter(AutoTokenizer.from_pretrained(folder))


def test_fixed_cues_are_words_that_mean_nothing(cues: CueWriter) -> None:
    for text in (EP1, EP3):
        ids = cues.encode(text)
        assert set(ids.tolist()) <= set(WORDS[1:])
        assert len(set(ids.tolist())) == len(ids)
    assert cues.end_of_turn() == END
    assert cues.encode("something else").tolist() == [UNKNOWN, UNKNOWN]


def test_a_recall_terminal_asks_for_pairs_and_quotes(cues: CueWriter) -> None:
    recall = Recall(verbatim=1, facts=40, cue_tokens=(2, 3), answer_tokens=(4, 6))
    terminal = Terminal(cue="recall", recall=recall)
    content = cues.write(terminal, document(512, (0,)), np.random.default_rng(0))
    (segment,) = content.terminals
    facts = segment.tokens[:120].reshape(40, 3)
    assert np.isin(facts[:, 0], FIRST).all()
    assert np.isin(facts[:, 1], SECOND).all()
    assert np.isin(facts[:, 2], VALUE).all()
    assert segment.weights[:120].reshape(40, 3).tolist() == [[0, 0, 1]] * 40
    assert len(set(facts[:, 2].tolist())) > 12  # values of all kinds, not a few digits
    planted = {tuple(content.prefix_P[n : n + 3]) for n in range(len(content.prefix_P) - 2)}
    assert {tuple(fact) for fact in facts} <= planted
    assert segment.tokens[120] == OPEN
    assert segment.tokens[-1] == CLOSE
    assert UNKNOWN not in segment.tokens
