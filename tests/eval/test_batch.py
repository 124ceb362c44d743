"""Prompts answered together get the answers that each gets alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_lm import tiny_engine, tiny_model

from endprompt.eval import batch, engine
from endprompt.eval.reader import Reader
from endprompt.eval.results import Question


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 200, count).tolist()


def question(number: int, prompt: str, new: int = 8, stop: tuple[str, ...] = ()) -> Question:
    return Question(
        id=str(number), task="t", length=0, prompt=prompt, max_new_tokens=new, stop=stop
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("chunk", [8, 90, 1024])
@pytest.mark.parametrize("shared", [0, 50])
def test_a_batch_writes_what_each_prompt_alone_gets(attention, chunk, shared) -> None:
    engine = tiny_engine(chunk=chunk)
    engine.model.set_attn_implementation(attention)
    begun = random_ids(shared, 99)
    rests = [random_ids(length, length) for length in (41, 60, 41, 1, 59)]
    alone = [engine.generate([*begun, *rest], 12) for rest in rests]
    engine.model.generation_config.eos_token_id = alone[1][5]
    stop = engine.decode(alone[2][3:4])
    stops = ((), (), (stop,), (), ())
    requests = list(map(batch.Request, rests, (12, 12, 12, 5, 1), stops))
    after = None
    if shared:
        after = engine.context()
        after.extend(begun)
    expected = [engine.generate([*begun, *r.ids], r.max_new_tokens, stop=r.stop) for r in requests]
    assert batch.complete(engine, requests, after=after) == expected
    assert len({len(answer) for answer in expected}) > 2
    if after is not None:
        assert after.length == shared
        scores = after.extend(rests[0], scored=len(rests[0]))
        whole = engine.context().extend([*begun, *rests[0]], scored=len(rests[0]))
        np.testing.assert_allclose(scores.nll_T, whole.nll_T, atol=2e-4)


def test_a_suite_is_answered_in_batches_as_question_by_question() -> None:
    own = tiny_engine(chunk=64)
    rng = np.random.default_rng(0)
    book = own.decode(random_ids(300, 7))
    prompts = [own.decode(random_ids(int(rng.integers(70, 78)), n)) for n in range(5)]
    prompts += [book + own.decode(random_ids(9, n)) for n in range(3)] + [prompts[0]]
    questions = [question(n, prompt, stop=("e",) * (n % 2)) for n, prompt in enumerate(prompts)]
    reader = Reader(own)
    batches = list(reader.batches(questions))
    assert [q.id for group in batches for q in group] == [str(n) for n in range(9)]
    assert max(map(len, batches)) > 2
    together = [answer for group in batches for answer in reader.answer_all(group)]
    assert together == [Reader(own).answer(q.prompt, 8, q.stop) for q in questions]


def test_batches_hold_prompts_of_like_length_and_fit_in_memory(monkeypatch) -> None:
    own = tiny_engine()
    prompts = ["river " * words for words in (100, 101, 102, 20, 21, 300)]
    lengths = [len(own.prompt_ids(prompt)) for prompt in prompts]
    reader = Reader(own)
    questions = [question(n, prompt) for n, prompt in enumerate(prompts)]
    like = [[q.id for q in group] for group in reader.batches(questions)]
    assert like == [["0", "1", "2"], ["3", "4"], ["5"]]
    # Two layers, two key heads of eight numbers, keys and values in float32.
    row = 2 * 2 * 2 * 8 * 4 * (max(lengths[:3]) + 8)
    free = int(2.5 * row / engine.CACHE_PART)
    monkeypatch.setattr("endprompt.eval.cache.free_memory_bytes", lambda _: free)
    bounded = [[q.id for q in group] for group in reader.batches(questions)]
    assert bounded == [["0", "1"], ["2"], ["3", "4"], ["5"]]


def test_a_prompt_is_tokenised_once_and_for_all_readers_that_share(monkeypatch) -> None:
    own = tiny_engine()
    questions = [question(n, "river " * (40 + n)) for n in range(3)]
    seen: list[str] = []
    encode = own.prompt_ids
    monkeypatch.setattr(own, "prompt_ids", lambda prompt: seen.append(prompt) or encode(prompt))
    known: dict[str, list[int]] = {}
    answers = []
    for reader in (Reader(own), Reader(own, known=known), Reader(own, known=known)):
        answers.append([a for group in reader.batches(questions) for a in reader.answer_all(group)])
    assert answers[0] == answers[1] == answers[2]
    assert len(seen) == 2 * len(questions)


def test_models_that_forget_or_turn_by_length_answer_one_by_one() -> None:
    assert tiny_engine().rows_at_once(100) > 1
    assert tiny_engine(family="mistral-sliding").rows_at_once(100) == 1
    turned = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert tiny_engine(model=tiny_model(rope_parameters=turned)).rows_at_once(100) == 1


def test_free_memory_is_some_of_the_machine() -> None:
    from endprompt.eval.cache import free_memory_bytes

    assert 2**20 < free_memory_bytes(torch.device("cpu")) < 2**50
