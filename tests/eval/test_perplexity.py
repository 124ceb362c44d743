"""Three definitions of perplexity, each against a reference of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tiny_lm import tiny_engine, tiny_model

from endprompt.errors import DataError, EvaluationError
from endprompt.eval.perplexity import perplexity, read_tokens, scored_windows

COUNT = 205


def tokens(tmp_path, count: int = COUNT, kind: str = "<u2"):
    ids = np.random.default_rng(0).integers(5, 300, count)
    path = tmp_path / "tokens.bin"
    ids.astype(kind).tofile(path)
    return path, ids.tolist()


def losses(model, ids) -> np.ndarray:
    """float64 losses of tokens 1.. by one naive pass in double precision."""
    ids_T = torch.tensor(list(ids))
    with torch.no_grad():
        logits = model(input_ids=ids_T[None], use_cache=False).logits[0]
    return -logits.log_softmax(-1)[:-1].gather(1, ids_T[1:, None])[:, 0].numpy()


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 16), (50, 37), (300, 10), (64, 1)])
def test_strided_scores_each_token_once_with_enough_context(tmp_path, window, stride):
    path, ids = tokens(tmp_path, 90 if stride == 1 else COUNT)
    engine = tiny_engine(chunk=30)
    result = perplexity(engine, path, windows=[window], stride=stride, definition="strided")
    model = tiny_model().double()
    total, scored = 0.0, 0
    for token in range(1, len(ids)):
        # The first window that reaches the token.
        start = next(s for s in range(0, len(ids), stride) if s + window > token)
        if token == start:
            assert stride == window
            continue
        total += losses(model, ids[start : token + 1])[-1]
        scored += 1
        if start:
            assert token - start >= window - stride
    assert result.scored == scored
    assert result.nll_sum == pytest.approx(total, rel=1e-5)
    assert result.nats_per_token == pytest.approx(total / scored, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(total / scored), rel=1e-4)
    if stride < window:
        text = engine.decode(ids[1:]).encode()
        assert result.bits_per_byte == pytest.approx(total / math.log(2) / len(text), rel=1e-3)


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (50, 37), (200, 3)])
def test_window_mean_is_the_mean_of_window_losses(tmp_path, window, stride):
    path, ids = tokens(tmp_path)
    result = perplexity(
        tiny_engine(chunk=30), path, windows=[window], stride=stride, definition="window-mean"
    )
    starts = list(range(0, len(ids) - window, stride))
    starts.pop()
    model = tiny_model().double()
    means = [losses(model, ids[start : start + window]).mean() for start in starts]
    assert result.windows == len(starts)
    assert result.nats_per_token == pytest.approx(np.mean(means), rel=1e-5)
    assert result.nll_sum == pytest.approx(np.sum(means) * (window - 1), rel=1e-5)


@pytest.mark.parametrize("window", [32, 64, 205, 500])
def test_rolling_is_that_of_lm_eval(tmp_path, window):
    path, ids = tokens(tmp_path)
    engine = tiny_engine(chunk=30)
    result = perplexity(engine, path, windows=[window], stride=window, definition="rolling")
    model = tiny_model().double()
    prefix = engine.tokenizer.eos_token_id
    total = 0.0
    for pair in get_rolling_token_windows(ids, prefix, window, 1):
        context, continuation = make_disjoint_window(pair)
        total += losses(model, context + continuation)[-len(continuation) :].sum()
    assert result.scored == len(ids)
    assert result.nll_sum == pytest.approx(total, rel=1e-5)


def test_every_window_size_has_a_row_and_the_curve_adds_up(tmp_path):
    path, _ids = tokens(tmp_path)
    result = perplexity(
        tiny_engine(), path, windows=[64, 32], stride=16, definition="strided", bins=10
    )
    assert [row.window for row in result.by_length] == [32, 64]
    assert result.window == 64
    curve = sum(part.nll * part.tokens for part in result.by_position)
    assert curve == pytest.approx(result.nll_sum)
    assert sum(part.tokens for part in result.by_position) == result.scored
    alone = perplexity(tiny_engine(), path, windows=[32], stride=16, definition="strided")
    assert alone.nll_sum == result.by_length[0].nll_sum


@given(
    count=st.integers(2, 400),
    window=st.integers(2, 120),
    share=st.floats(0.01, 1.0),
)
@settings(deadline=None)
def test_strided_and_rolling_windows_cover_every_token_once(count, window, share):
    stride = max(1, int(window * share))
    for definition, first in (("strided", 1), ("rolling", 0)):
        covered = [
            token
            for w in scored_windows(count, window, stride, definition)
            for token in range(w.end - w.scored, w.end)
        ]
        alone = range(0, count, stride) if definition == "strided" and stride == window else ()
        assert covered == [token for token in range(first, count) if token not in alone]


def test_token_files_of_every_kind_are_the_same_tokens(tmp_path):
    path, ids = tokens(tmp_path)
    assert read_tokens(path, 320).tolist() == ids
    wide, _ = tokens(tmp_path, kind="<u4")
    assert read_tokens(wide, 70_000).tolist() == ids
    np.save(tmp_path / "t.npy", np.asarray(ids, dtype=np.int32))
    assert read_tokens(tmp_path / "t.npy", 320).tolist() == ids


def test_files_that_cannot_be_these_tokens_are_refused(tmp_path):
    path, _ids = tokens(tmp_path)
    with pytest.raises(DataError, match="the model knows 100: made with another tokenizer"):
        read_tokens(path, 100)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="has 3 bytes: not a whole number of uint16 tokens"):
        read_tokens(path, 320)
    with pytest.raises(DataError, match="cannot read tokens from"):
        read_tokens(tmp_path / "absent.bin", 320)
    np.save(tmp_path / "f.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"float64\[2, 2\]: give int\[tokens\]"):
        read_tokens(tmp_path / "f.npy", 320)
    with pytest.raises(EvaluationError, match="need 1 <= stride <= window"):
        scored_windows(100, 10, 20, "strided")
    with pytest.raises(EvaluationError, match="10 tokens are too few for window-mean"):
        scored_windows(10, 10, 2, "window-mean")
