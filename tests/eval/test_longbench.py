"""LongBench: the original's scores, its truncation, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import tiny_tokenizer

from endprompt.errors import DataError, EvaluationError
from endprompt.eval import longbench

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "longbench_scores.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", longbench.DATASETS)
def test_scores_equal_those_of_the_original_scorer(name):
    known = REFERENCE["datasets"][name]
    rows = [{**row, "all_classes": REFERENCE["classes"]} for row in known["rows"]]
    assert longbench.score_rows(name, rows).score == known["score"]
    if "by_length" in known:
        scored = longbench.score_rows(f"{name}_e", rows)
        assert scored.by_length == known["by_length"]


def test_there_are_16_english_data_sets_5_chinese_and_13_by_length():
    assert len(longbench.ENGLISH) == 16
    assert len(longbench.DATASETS) == 21
    assert len(longbench.EXTENDED) == 13


@pytest.mark.parametrize("name", longbench.DATASETS)
def test_every_template_holds_the_context_and_room_for_an_answer(name):
    text = longbench.prompt(name, {"context": "CONTEXT", "input": "QUESTION"})
    assert "CONTEXT" in text
    assert longbench.tokens_to_generate(name) in (32, 64, 128, 512)


def test_only_few_shot_answers_are_cut_to_their_first_line():
    assert longbench.score("triviaqa", "\nParis\nLondon Rome", ["Paris"]) == 1.0
    assert longbench.score("hotpotqa", "\nParis\nLondon Rome", ["Paris"]) < 1.0


@given(count=st.integers(1, 60), limit=st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_the_middle_goes_and_both_ends_stay(count, limit):
    tokenizer = tiny_tokenizer()
    text = " ".join(f"w{n}" for n in range(count))
    ids = tokenizer(text)["input_ids"]
    cut = longbench.cut_middle(text, tokenizer, limit)
    if len(ids) <= limit:
        assert cut == text
    else:
        half = limit // 2
        assert cut == tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
        assert text.startswith(tokenizer.decode(ids[:half]))
        assert text.endswith(tokenizer.decode(ids[-half:]))


def test_both_averages_are_named_and_differ():
    scores = [
        longbench.DatasetScore(dataset=name, category=category, score=value, samples=1)
        for name, category, value in [
            ("narrativeqa", "single-document QA", 10.0),
            ("qasper", "single-document QA", 20.0),
            ("lcc", "code", 60.0),
            ("vcsum", "summarization", 100.0),
        ]
    ]
    found = longbench.averages(scores)
    assert found.over_datasets == 30.0
    assert found.over_categories == 37.5
    assert len(found.missing) == 13


def test_rows_that_cannot_be_used_are_named_by_their_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"pred": "a", "answers": ["a"]}\n{"pred": "a"}\n')
    with pytest.raises(DataError, match=r"p.jsonl:2 lacks 'answers'"):
        list(longbench.read_rows(path, ("pred", "answers")))
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        list(longbench.read_rows(path, ("pred",)))
    with pytest.raises(DataError, match="each row needs 'all_classes'"):
        longbench.score("trec", "x", ["x"])
    with pytest.raises(DataError, match="lacks a field of its prompt"):
        longbench.prompt("qasper", {"input": "x"})
    with pytest.raises(DataError, match=r"no qasper.jsonl in"):
        longbench.load_rows("qasper", tmp_path)
    with pytest.raises(EvaluationError, match="did you mean 'qasper'"):
        longbench.find_dataset("qaspr")
    with pytest.raises(EvaluationError, match="LongBench has no 'narrativeqa_e'"):
        longbench.find_dataset("narrativeqa_e")


def test_lm_eval_s_module_loads_without_its_gpl_dependency():
    import sys

    longbench.score("qasper", "x", ["x"])
    assert "fuzzywuzzy" not in sys.modules


def test_a_line_of_predictions_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"pred": f"one{mark}two"} for mark in ("\u2028", "\u0085", "\x1c")]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode())
    assert list(longbench.read_rows(path, ["pred"])) == rows
