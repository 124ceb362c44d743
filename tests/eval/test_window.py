"""Loss, needles and quotes: what is planted, what is asked, what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lm import tiny_engine, tiny_model, tiny_tokenizer

from endprompt.errors import EvaluationError
from endprompt.eval.engine import Coder, Context
from endprompt.eval.needle import (
    SNAP,
    keys_and_answers,
    needle_grid,
    plant,
    question_and_answer,
    sentence,
)
from endprompt.eval.perplexity import loss_by_position
from endprompt.eval.window import WindowCheck, require_room, window_check
from endprompt.eval.window_keys import KeyFinder, RecordedKeys
from endprompt.io import records
from endprompt.record import Window

TEXT = "the old house stands near a river. people walk at night and find stones! is it so? yes. "


def document(seed: int, tokens: int = 1200) -> list[int]:
    words = TEXT.split(" ")
    rng = np.random.default_rng(seed)
    text = " ".join(rng.choice(words, size=tokens))
    return tiny_tokenizer()(text, verbose=False)["input_ids"][:tokens]


def reference_nll(model, ids) -> np.ndarray:
    ids_T = torch.as_tensor(ids)
    with torch.no_grad():
        log_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].double().log_softmax(-1)
    return -log_TV[:-1].gather(1, ids_T[1:, None])[:, 0].numpy()


def test_loss_by_position_is_the_mean_of_a_plain_pass():
    engine = tiny_engine(chunk=50)
    documents = [document(0), document(1)]
    done: list[float] = []
    result = loss_by_position(
        engine, documents, lengths=[300, 100, 200], last=40, bins=64, progress=done.append
    )
    assert result.lengths == [100, 200, 300]
    for loss in result.losses:
        nll = reference_nll(engine.model, documents[loss.document][: loss.length])
        assert loss.tokens == 40
        assert loss.nll == pytest.approx(nll[-40:].mean(), abs=1e-4)
    first = [part for part in result.curve if part.document == 0]
    assert [(p.start, p.end, p.tokens) for p in first[:1] + first[-1:]] == [
        (0, 64, 63),
        (256, 300, 44),
    ]
    nll = reference_nll(engine.model, documents[0][:300])
    assert first[1].nll == pytest.approx(nll[63:127].mean(), abs=1e-4)
    assert done == [0.5, 1.0]


def test_a_model_whose_rope_depends_on_length_is_read_once_for_each():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope, max_position_embeddings=64)
    engine = tiny_engine(model=model)
    text = document(0)
    result = loss_by_position(engine, [text, text], lengths=[100, 200], last=40)
    for loss in result.losses:
        fresh = tiny_model(rope_parameters=rope, max_position_embeddings=64)
        expected = reference_nll(fresh, text[: loss.length])[-40:].mean()
        assert loss.nll == pytest.approx(expected, abs=1e-4)
    check = window_check(engine, [text], lengths=[400, 800], needles=2, quotes=2, last=40)
    assert len(check.summary()) == 2


@given(
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=4).map(sorted),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_a_haystack_holds_every_needle_whole_and_the_text_in_order(depths, seed):
    engine = tiny_engine()
    text = np.asarray(document(seed))
    pairs = keys_and_answers(len(depths), seed, 0)
    length = 900
    try:
        stack = plant(engine, text, length, [round(d * length) for d in depths], pairs)
    except EvaluationError as error:
        # Only where two needles were to stand closer than a needle's length and its snap.
        close = min(np.diff(depths), default=1.0) * length < 120
        if not close and depths[0] * length > 1 and length * (1 - depths[-1]) > 120:
            raise AssertionError("needles with room enough were refused") from error
        return
    assert len(stack.ids_T) == length
    whole = np.ones(length, dtype=bool)
    for needle, depth in zip(stack.needles, depths, strict=True):
        written = engine.decode(stack.ids_T[needle.start : needle.end].tolist())
        assert written == sentence(needle.key, needle.answer)
        whole[needle.start : needle.end] = False
        size = needle.end - needle.start
        assert min(round(depth * length), length - size) <= needle.start
        assert needle.start <= depth * length + SNAP + 1
    np.testing.assert_array_equal(stack.ids_T[whole], text[: whole.sum()])
    assert not stack.text_T[~whole].any()


def test_keys_are_distinct_and_answers_have_seven_digits():
    pairs = keys_and_answers(500, 3, 1)
    assert len({key for key, _ in pairs}) == 500
    assert all(len(answer) == 7 and answer.isdigit() for _, answer in pairs)
    assert pairs == keys_and_answers(500, 3, 1)
    assert pairs != keys_and_answers(500, 3, 2)


def test_the_answer_is_the_digits_and_nothing_else():
    engine = tiny_engine()
    question, answer = question_and_answer(engine, "amber anchor", "1234567")
    assert [engine.decode([token]) for token in answer] == list("1234567")
    assert engine.decode(question + answer).endswith("the code of the amber anchor is 1234567")


class Oracle(Context):
    """A context that answers perfectly from what it was given, or always wrongly."""

    truthful = True
    asked: list[tuple[int, list[int], list[int]]]

    def extend(self, ids, *, scored=0):
        self.read = [*getattr(self, "read", []), *np.asarray(ids).tolist()]
        self.length = len(self.read)
        from endprompt.eval.engine import Scores

        return Scores(np.ones(scored), np.ones(scored, dtype=bool))

    def ask(self, question, answer):
        from endprompt.eval.engine import Scores

        type(self).asked.append((self.length, list(question), list(answer)))
        text = self.engine.decode(self.read)
        known = self.engine.decode(answer) in text
        right = np.full(len(answer), known and self.truthful)
        right[0] = known
        return Scores(np.where(right, 0.0, 2.0), right)

    def ask_all(self, questions):
        return [self.ask(*pair) for pair in questions]


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr("endprompt.eval.engine.Context", Oracle)
    Oracle.truthful = True
    Oracle.asked = []
    return Oracle


def test_everything_asked_was_planted_before_and_fits_the_length(oracle):
    engine = tiny_engine(chunk=100)
    check = window_check(
        engine, [document(0), document(1)], lengths=[400, 800, 1200], needles=2, quotes=3, last=50
    )
    rows = check.summary()
    assert [row.hits for row in rows] == [1.0, 1.0, 1.0]
    assert [row.digits_right for row in rows] == [1.0, 1.0, 1.0]
    assert [row.quote for row in rows] == [0.0, 0.0, 0.0]
    assert all(row.needles == 4 and row.quotes == 6 and row.documents == 2 for row in rows)
    # Every question ends within its length.
    asked = iter(oracle.asked)
    for number in range(2):
        for length in check.lengths:
            mine = [s for s in check.needles if (s.document, s.length) == (number, length)]
            spans = [s for s in check.quotes if (s.document, s.length) == (number, length)]
            for _ in range(len(mine) + len(spans)):
                place, question, answer = next(asked)
                assert place + len(question) + len(answer) <= length


def test_a_model_that_gets_one_digit_is_scored_so(oracle):
    oracle.truthful = False
    check = window_check(tiny_engine(), [document(0)], lengths=[600], needles=2, quotes=1, last=50)
    row = check.summary()[0]
    assert row.hits == 0.0
    assert row.digits_right == pytest.approx(1 / 7)
    assert row.needle == pytest.approx(12.0)
    assert row.needle_per_token == pytest.approx(12 / 7)


@pytest.mark.usefixtures("oracle")
def test_a_needle_that_is_not_there_is_missed(monkeypatch):
    monkeypatch.setattr("endprompt.eval.needle.sentence", lambda *_: " The code is lost.")
    check = window_check(tiny_engine(), [document(0)], lengths=[600], needles=2, quotes=1, last=50)
    assert check.summary()[0].hits == 0.0


def test_window_check_measures_the_losses_of_a_plain_pass_over_its_haystack(monkeypatch):
    engine = tiny_engine(chunk=70)
    stacks = []
    monkeypatch.setattr(
        "endprompt.eval.window.plant", lambda *given: stacks.append(plant(*given)) or stacks[-1]
    )
    check = window_check(engine, [document(5)], lengths=[500, 1000], needles=2, last=50, bins=100)
    (stack,) = stacks
    assert len(stack.needles) == 4
    nll_T = np.concatenate([[np.nan], reference_nll(engine.model, stack.ids_T)])
    for loss in check.losses:
        assert loss.tokens == 50
        assert loss.nll == pytest.approx(nll_T[loss.length - 50 : loss.length].mean(), abs=1e-3)
    for part in check.curve:
        own = nll_T[part.start : part.end][stack.text_T[part.start : part.end]]
        assert part.nll == pytest.approx(np.nanmean(own), abs=1e-3)
    assert sum(part.tokens for part in check.curve) == stack.text_T[1:].sum()


def test_the_same_seed_gives_the_same_check_and_it_survives_json():
    def check(seed: int) -> WindowCheck:
        engine = tiny_engine(chunk=70)
        return window_check(engine, [document(5)], lengths=[500], needles=2, last=50, seed=seed)

    assert check(4).model_dump_json() == check(4).model_dump_json()
    assert check(4).needles != check(5).needles
    assert WindowCheck.model_validate_json(check(4).model_dump_json()) == check(4)


def test_questions_and_answers_are_the_same_for_every_model():
    first = window_check(tiny_engine(), [document(5)], lengths=[500], needles=3, last=50)
    other = tiny_engine(model=tiny_model(seed=9), name="other")
    second = window_check(other, [document(5)], lengths=[500], needles=3, last=50)
    assert [(s.key, s.answer, s.position) for s in first.needles] == [
        (s.key, s.answer, s.position) for s in second.needles
    ]
    assert [q.position for q in first.quotes] == [q.position for q in second.quotes]
    assert first.texts == second.texts
    assert first.needles[0].nll != second.needles[0].nll


@pytest.mark.usefixtures("oracle")
def test_needle_grid_has_a_cell_for_each_depth_and_length():
    done: list[float] = []
    grid = needle_grid(
        tiny_engine(),
        [document(0), document(1)],
        lengths=[500, 1000],
        depths=[0.0, 0.5, 1.0],
        progress=done.append,
    )
    assert grid.grid("hit").tolist() == [[1.0, 1.0]] * 3
    for length in grid.lengths:
        depths = [score.depth for score in grid.scores if score.length == length]
        stands = [any(n / 4 <= d < (n + 1) / 4 for d in depths) for n in range(4)]
        assert grid.by_quarter(length, "hit") == [1.0 if there else None for there in stands]
    assert len(grid.scores) == 12
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)


def test_errors_name_numbers_and_remedy():
    engine = tiny_engine()
    with pytest.raises(EvaluationError, match="document 0 has 1200 tokens, 2000 are needed"):
        loss_by_position(engine, [document(0)], lengths=[2000])
    with pytest.raises(EvaluationError, match="9 needles do not fit between 0 and 500 tokens"):
        window_check(engine, [document(0)], lengths=[500], needles=9, last=50)
    with pytest.raises(
        EvaluationError, match="length 100 tokens with the loss taken over the last"
    ):
        loss_by_position(engine, [document(0)], lengths=[100], last=100)
    with pytest.raises(EvaluationError, match="rising numbers from 0 to 1"):
        needle_grid(engine, [document(0)], lengths=[500], depths=[0.5, 0.1])


@pytest.mark.parametrize(
    ("lengths", "needles", "said"),
    [
        ([100, 200], 4, "tokens"),
        ([500, 510], 64, "needles do not fit"),
        ([600, 10**6], 64, "ask for fewer or begin at a greater length"),
        ([500], 0, "at least one"),
    ],
)
def test_what_cannot_be_asked_is_refused_from_the_tokenizer_alone(
    lengths: list[int], needles: int, said: str
) -> None:
    coder = Coder(tiny_tokenizer())
    with pytest.raises(EvaluationError, match=said):
        require_room(coder, lengths, needles=needles)
    require_room(coder, [800, 2000], needles=2)


LIMITS = {"gain": 0.05, "known": 6.5}
"""A random model gains little from its context, and says nothing below 2 nats."""


def key_places(model, ids, length: int, reads: int) -> list[int]:
    """Key tokens of the last quarter of what is read, by a loop over them."""
    whole, first = reference_nll(model, ids[length - reads : length]), length - reads // 4
    context, step = reads // 8, reads // 8 // 4
    found = []
    for token in range(first, length):
        start = first - context + (token - first) // step * step
        short = reference_nll(model, ids[start : token + 1])[-1]
        long = whole[token - (length - reads) - 1]
        if short - long > LIMITS["gain"] and long < LIMITS["known"]:
            found.append(token)
    return found


def test_key_tokens_are_found_inside_the_evaluators_window_and_scored_by_the_model(monkeypatch):
    base, other = tiny_model(max_position_embeddings=384), tiny_model(seed=9)
    finder = KeyFinder(tiny_engine(model=base, name="base"), **LIMITS)
    engine, stacks = tiny_engine(model=other, chunk=70), []
    monkeypatch.setattr(
        "endprompt.eval.window.plant", lambda *given: stacks.append(plant(*given)) or stacks[-1]
    )
    asked = {"lengths": [320, 700], "needles": 1, "last": 50}
    check = window_check(engine, [document(5)], keys=finder, **asked)
    plain = window_check(engine, [document(5)], **asked)
    assert check.losses == plain.losses
    assert check.needles == plain.needles
    assert check.key_search.evaluator == "base"
    assert plain.key_search is None
    stack = stacks[0]
    nll_T = np.concatenate([[np.nan], reference_nll(other, stack.ids_T)])
    for length, reads in ((320, 320), (700, 384)):
        places = key_places(base, stack.ids_T, length, reads)
        wanted = [place for place in places if stack.text_T[place]]
        mine = [key for key in check.key_tokens if key.length == length]
        assert len(wanted) > 3
        assert [key.position for key in mine] == wanted
        np.testing.assert_allclose([key.nll for key in mine], nll_T[wanted], atol=1e-3)
    row = check.summary()[1]
    assert row.key_tokens == len(mine)
    assert row.key_loss == pytest.approx(np.mean([key.nll for key in mine]))


def test_key_tokens_of_an_earlier_check_are_taken_for_the_same_texts_only(tmp_path):
    finder = KeyFinder(tiny_engine(name="base"), **LIMITS)
    asked = {"lengths": [400], "needles": 2, "last": 50}
    first = window_check(tiny_engine(), [document(5)], keys=finder, **asked)
    assert first.key_tokens

    def recorded(check: WindowCheck) -> RecordedKeys:
        (tmp_path / "window.json").write_text(check.model_dump_json())
        return RecordedKeys(records.read(tmp_path / "window.json", Window), tmp_path)

    other = tiny_engine(model=tiny_model(seed=9))
    again = window_check(other, [document(5)], keys=recorded(first), **asked)
    assert [key.position for key in again.key_tokens] == [key.position for key in first.key_tokens]
    assert again.key_search == first.key_search
    assert again.key_tokens != first.key_tokens
    for changed in ({"seed": 3}, {"lengths": [400, 500]}):
        with pytest.raises(EvaluationError, match="key tokens of other texts"):
            window_check(other, [document(5)], keys=recorded(first), **{**asked, **changed})
    with pytest.raises(EvaluationError, match="holds no key tokens"):
        recorded(window_check(other, [document(5)], **asked))
