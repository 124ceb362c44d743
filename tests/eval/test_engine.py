"""The engine gives the numbers of one plain forward pass, whatever the chunks and the questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_lm import tiny_engine, tiny_model

from endprompt.errors import EvaluationError
from endprompt.eval.engine import Engine


def reference_nll(model, ids) -> np.ndarray:
    """Losses of tokens 1.. from one forward pass over everything."""
    ids_T = torch.tensor(list(ids))
    with torch.no_grad():
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].double()
    log_TV = logits_TV.log_softmax(-1)
    return -log_TV[:-1].gather(1, ids_T[1:, None])[:, 0].numpy()


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 200, count).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 64, 500])
@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_chunked_prefill_gives_the_losses_of_one_pass(chunk, family):
    engine = tiny_engine(family=family, chunk=chunk)
    ids = random_ids(150)
    scores = engine.context().extend(ids, scored=len(ids))
    assert np.isnan(scores.nll_T[0])
    np.testing.assert_allclose(scores.nll_T[1:], reference_nll(engine.model, ids), atol=2e-4)


@pytest.mark.parametrize("scored", [0, 1, 13, 64, 65, 149])
def test_only_the_last_tokens_are_scored_when_asked(scored):
    engine = tiny_engine(chunk=64)
    ids = random_ids(150)
    scores = engine.context().extend(ids, scored=scored)
    assert scores.nll_T.shape == scores.right_T.shape == (scored,)
    expected = reference_nll(engine.model, ids)[149 - scored :]
    np.testing.assert_allclose(scores.nll_T, expected, atol=2e-4)


def test_reading_on_is_the_same_as_reading_at_once():
    engine = tiny_engine(chunk=32)
    ids = random_ids(120)
    context = engine.context()
    parts = [context.extend(ids[a:b], scored=b - a).nll_T for a, b in [(0, 1), (1, 50), (50, 120)]]
    whole = engine.context().extend(ids, scored=120).nll_T
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_questions_leave_the_context_as_it_was(family):
    engine = tiny_engine(family=family, chunk=16)
    prefix, question, answer, rest = (random_ids(n, n) for n in (90, 20, 6, 40))
    context = engine.context()
    context.extend(prefix)
    for _ in range(3):
        scores = context.ask(question, answer)
        expected = reference_nll(engine.model, prefix + question + answer)[-6:]
        np.testing.assert_allclose(scores.nll_T, expected, atol=2e-4)
        context.complete(question, 9)
    assert context.length == 90
    after = context.extend(rest, scored=40)
    expected = reference_nll(engine.model, prefix + rest)[-40:]
    np.testing.assert_allclose(after.nll_T, expected, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunk", [16, 64, 1024])
def test_questions_asked_together_score_as_each_alone(family, attention, chunk):
    engine = tiny_engine(family=family, chunk=chunk)
    engine.model.set_attn_implementation(attention)
    prefix, rest = random_ids(90, 1), random_ids(40, 2)
    pairs = [(random_ids(n, n), random_ids(n + 2, n + 50)) for n in (0, 3, 20, 7, 0, 1)]
    context = engine.context()
    context.extend(prefix)
    together = context.ask_all(pairs)
    for (question, answer), scores in zip(pairs, together, strict=True):
        ids = prefix + question + answer
        expected = reference_nll(engine.model, ids)[-len(answer) :]
        np.testing.assert_allclose(scores.nll_T, expected, atol=2e-4)
        np.testing.assert_array_equal(scores.right_T, context.ask(question, answer).right_T)
    assert context.length == 90
    after = context.extend(rest, scored=40)
    expected = reference_nll(engine.model, prefix + rest)[-40:]
    np.testing.assert_allclose(after.nll_T, expected, atol=2e-4)


def test_exact_means_what_greedy_decoding_writes():
    engine = tiny_engine(chunk=16)
    context = engine.context()
    context.extend(random_ids(50))
    question = random_ids(5, 3)
    written = context.complete(question, 8)
    assert len(written) == 8
    assert context.ask(question, written).exact
    wrong = [*written[:4], (written[4] + 1) % 200, *written[5:]]
    scores = context.ask(question, wrong)
    assert not scores.exact
    assert scores.right_T[:4].all()
    assert not scores.right_T[4]


def test_greedy_decoding_equals_transformers_generate():
    engine = tiny_engine(chunk=16)
    prompt = random_ids(70)
    ids = torch.tensor([prompt])
    theirs = engine.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )[0, 70:].tolist()
    assert engine.generate(prompt, 12) == theirs


def test_decoding_stops_at_end_token_and_stop_text():
    engine = tiny_engine(chunk=16)
    prompt = random_ids(30)
    written = engine.generate(prompt, 10)
    engine.model.generation_config.eos_token_id = written[3]
    assert engine.generate(prompt, 10) == written[: written.index(written[3])]
    engine.model.generation_config.eos_token_id = None
    text = engine.decode([written[2]])
    stopped = engine.generate(prompt, 10, stop=[text])
    assert text in engine.decode(stopped)
    assert text not in engine.decode(stopped[:-1])


def test_batched_loglikelihoods_equal_one_pass_each():
    engine = tiny_engine(chunk=64)
    rng = np.random.default_rng(1)
    shared = random_ids(40, 9)
    requests = [
        (random_ids(int(rng.integers(1, 100)), i), random_ids(int(rng.integers(1, 9)), i + 50))
        for i in range(20)
    ] + [(shared, random_ids(4, 80 + i)) for i in range(3)]
    done = []
    scores = engine.loglikelihoods(requests, progress=done.append)
    assert sum(done) == len(requests)
    for (context, answer), score in zip(requests, scores, strict=True):
        expected = reference_nll(engine.model, context + answer)[-len(answer) :]
        np.testing.assert_allclose(score.nll_T, expected, atol=2e-4)


def test_logits_are_never_computed_for_the_whole_prompt():
    engine = tiny_engine(chunk=32)
    rows: list[int] = []
    engine.model.lm_head.register_forward_hook(
        lambda _m, inputs, _o: rows.append(inputs[0].shape[1])
    )
    engine.context().extend(random_ids(320), scored=10)
    assert rows == [1] * 9 + [11]
    rows.clear()
    engine.context().extend(random_ids(320), scored=320)
    assert max(rows) <= 32


def test_length_dependent_rope_is_read_in_one_piece():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope, max_position_embeddings=64)
    engine = tiny_engine(model=model, chunk=16)
    ids = random_ids(150)
    expected = reference_nll(model, ids)
    assert engine.length_dependent
    scores = engine.context().extend(ids, scored=149)
    np.testing.assert_allclose(scores.nll_T, expected, atol=2e-4)


def test_bad_requests_are_named():
    engine = tiny_engine()
    with pytest.raises(EvaluationError, match="request 1: context 0 tokens"):
        engine.loglikelihoods([([5], [6]), ([], [6])])
    with pytest.raises(EvaluationError, match="3 tokens to score, but only 2 given"):
        engine.context().extend([5, 6], scored=3)
    with pytest.raises(EvaluationError, match="unknown dtype 'float99'"):
        Engine.load("nowhere", dtype="float99")


def test_a_saved_checkpoint_loads_and_a_missing_one_is_one_line(tmp_path):
    from endprompt.errors import ModelError

    engine = tiny_engine()
    engine.model.save_pretrained(tmp_path / "m")
    engine.tokenizer.save_pretrained(tmp_path / "m")
    loaded = Engine.load(tmp_path / "m", dtype="float32")
    ids = random_ids(30)
    np.testing.assert_array_equal(
        loaded.context().extend(ids, scored=29).nll_T,
        engine.context().extend(ids, scored=29).nll_T,
    )
    with pytest.raises(ModelError, match="no such model") as caught:
        Engine.load(tmp_path / "absent")
    assert "\n" not in str(caught.value)
