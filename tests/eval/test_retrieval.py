"""Prompts of retrieval tasks fit their length and hold what they ask for."""

from __future__ import annotations

import json

import pytest
from test_window import document
from tiny_lm import tiny_engine, tiny_tokenizer

from endprompt.errors import EvaluationError
from endprompt.eval import retrieval
from endprompt.eval.engine import Coder
from endprompt.eval.reader import Reader

CODER = Coder(tiny_tokenizer())


def tokens(text: str) -> int:
    return len(CODER.prompt_ids(text))


def test_passkeys_fill_their_length_with_the_key_at_its_depth():
    asked = list(
        retrieval.passkeys(CODER, lengths=[800, 1600], depths=[0, 0.5, 1], samples=2, seed=1)
    )
    assert len({question.id for question in asked}) == 12
    for question in asked:
        size = tokens(question.prompt) + question.max_new_tokens
        unit = tokens(retrieval.NOISE)
        assert question.length - unit - 8 <= size <= question.length
        (key,) = question.references
        at = question.prompt.index(f"The pass key is {key}.") / len(question.prompt)
        wanted = float(question.id.split("/")[2])
        assert at == pytest.approx(wanted, abs=0.25)
    assert asked == list(
        retrieval.passkeys(CODER, lengths=[800, 1600], depths=[0, 0.5, 1], samples=2, seed=1)
    )


def test_the_value_asked_for_is_in_the_json():
    for question in retrieval.values(CODER, lengths=[1000], depths=[0, 0.5, 1], samples=1, seed=1):
        pairs = json.loads(question.prompt.split("JSON data:\n")[1].split("\n\nKey:")[0])
        key = question.prompt.rsplit('Key: "', 1)[1].split('"')[0]
        assert pairs[key] == question.references[0]
        assert len(pairs) > 3
        place = list(pairs).index(key) / (len(pairs) - 1)
        assert place == pytest.approx(float(question.id.split("/")[2]), abs=0.3)
        assert tokens(question.prompt) + question.max_new_tokens <= 1000


def test_needles_of_one_document_share_their_haystack():
    asked = list(retrieval.needles(CODER, [document(0)], lengths=[600], depths=[0.1, 0.9], seed=0))
    first, second = (question.prompt for question in asked)
    shared = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert shared > 0.9 * len(first)
    for question in asked:
        assert question.references[0] in question.prompt
        assert retrieval.hit(question, f" {question.references[0]}.") == {"hit": 1.0}
        assert retrieval.hit(question, " 123") == {"hit": 0.0}


def test_a_length_that_holds_nothing_is_refused():
    with pytest.raises(EvaluationError, match="cannot hold a prompt of"):
        list(retrieval.passkeys(CODER, lengths=[60], depths=[0.5], samples=1, seed=0))


@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_a_reader_answers_as_if_each_prompt_were_its_first(family, monkeypatch):
    engine = tiny_engine(family=family)
    asked = retrieval.needles(CODER, [document(0)], lengths=[300], depths=[0.1, 0.5, 0.9], seed=0)
    prompts = [question.prompt for question in asked]
    reader = Reader(engine)
    read: list[int] = []
    whole = engine.model.forward
    monkeypatch.setattr(
        engine.model,
        "forward",
        lambda **given: read.append(given["input_ids"].shape[1]) or whole(**given),
    )
    answers = [reader.answer(prompt, 5) for prompt in prompts]
    together = sum(read)
    assert answers == [Reader(engine).answer(prompt, 5) for prompt in prompts]
    if family == "llama":
        assert together < 2 * tokens(prompts[0])
