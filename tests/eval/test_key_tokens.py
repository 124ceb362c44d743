"""Key tokens: which they are, against a plain loop over LongPPL's definition; losses on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_lm import tiny_engine, tiny_model
from typer.testing import CliRunner

from endprompt.errors import EvaluationError
from endprompt.eval import key_tokens
from endprompt.eval.key_tokens import loss_on_key_tokens, needs

WINDOW, CONTEXTS = 96, [16, 48]
LIMITS = {"gain": 0.5, "known": 6.0}
"""A random model says nothing below 2 nats."""


def copied_text(path: Path, count: int = 200) -> np.ndarray:
    """Drawn tokens whose second half repeats the first."""
    half = np.random.default_rng(0).integers(5, 300, count // 2)
    ids = np.concatenate([half, half])
    ids.astype("<u2").tofile(path)
    return ids


def losses(model, ids) -> np.ndarray:
    """float64 losses of tokens 1.. by one pass."""
    ids_T = torch.tensor(list(ids))
    with torch.no_grad():
        logits = model(input_ids=ids_T[None], use_cache=False).logits[0]
    return -logits.log_softmax(-1)[:-1].gather(1, ids_T[1:, None])[:, 0].numpy()


def published(model, ids, context: int, step: int) -> set[int]:
    """Key tokens as LongPPL's authors define them: the short context is shared by `step` tokens."""
    whole, key = losses(model, ids), set()
    for start in range(0, len(ids) - context, step):
        end = min(start + context + step, len(ids))
        short = losses(model, ids[start:end])
        for token in range(start + context, end):
            gain = short[token - start - 1] - whole[token - 1]
            if gain > LIMITS["gain"] and whole[token - 1] < LIMITS["known"]:
                key.add(token)
    return key


def test_key_tokens_are_those_of_the_published_definition(tmp_path: Path) -> None:
    ids = copied_text(tmp_path / "tokens.bin")[:WINDOW]
    engine, model = tiny_engine(chunk=30), tiny_model().double()
    wanted = published(model, ids, 16, 4)
    assert len(wanted) > 3

    whole_T = key_tokens.losses_from(engine, ids, WINDOW - 4, 4)
    shorts_CT = np.stack([key_tokens.losses_from(engine, ids, c, 4) for c in CONTEXTS])
    need_T = needs(shorts_CT, whole_T, **LIMITS)

    assert set(np.flatnonzero(need_T > 0)) == wanted


def test_losses_are_the_models_on_the_tokens_that_the_evaluator_finds(tmp_path: Path) -> None:
    pieces = np.split(copied_text(tmp_path / "tokens.bin")[: 2 * WINDOW], 2)
    evaluator, other = tiny_model().double(), tiny_model(seed=1).double()
    keys = [sorted(published(evaluator, piece, 16, 4)) for piece in pieces]
    found = loss_on_key_tokens(
        tiny_engine(model=other), tiny_engine(model=evaluator), tmp_path / "tokens.bin",
        windows=[WINDOW], contexts=CONTEXTS, **LIMITS,
    )  # fmt: skip
    own, evaluated = (
        np.concatenate([losses(model, piece)[np.subtract(key, 1)]
                        for piece, key in zip(pieces, keys, strict=True)])
        for model in (other, evaluator)
    )  # fmt: skip
    together, near, far = found.losses
    assert together.tokens == len(own) == near.tokens + far.tokens
    assert together.nats_per_token == pytest.approx(own.mean(), rel=1e-4)
    assert together.perplexity == pytest.approx(np.exp(own.mean()), rel=1e-3)
    assert together.evaluator == pytest.approx(evaluated.mean(), rel=1e-4)
    assert abs(together.evaluator - together.nats_per_token) > 0.01
    assert [(loss.above, loss.upto) for loss in found.losses] == [(16, 96), (16, 48), (48, 96)]


def test_a_token_needs_the_first_context_that_is_enough() -> None:
    whole = np.array([0.5, 0.5, 0.5, 0.5, 3.0])
    shorts = np.array(
        [[0.6, 5.0, 5.0, 5.0, 9.0], [0.6, 1.0, 5.0, 4.0, 3.0], [0.5, 0.5, 1.0, 4.0, 3.0]]
    )
    assert needs(shorts, whole).tolist() == [-1, 1, 2, 3, -1]


def test_an_evaluator_with_a_shorter_window_reads_its_own(tmp_path: Path) -> None:
    copied_text(tmp_path / "tokens.bin")
    engine, base = tiny_engine(), tiny_engine(model=tiny_model(max_position_embeddings=64))
    found = loss_on_key_tokens(
        engine, base, tmp_path / "tokens.bin", windows=[WINDOW], contexts=[16]
    )
    assert found.reads == 64
    assert found.losses[0].upto == 64
    for contexts, windows in (([64], [WINDOW]), ([16], [1000])):
        with pytest.raises(EvaluationError, match="tokens"):
            loss_on_key_tokens(
                engine, base, tmp_path / "tokens.bin", windows=windows, contexts=contexts
            )


def test_the_command_prints_and_writes_them(tmp_path: Path) -> None:
    import json

    from endprompt.cli.app import app

    copied_text(tmp_path / "tokens.bin")
    engine = tiny_engine()
    engine.model.save_pretrained(tmp_path / "model")
    engine.tokenizer.save_pretrained(tmp_path / "model")
    command = ["eval", "perplexity", str(tmp_path / "model"), "--tokens",
               str(tmp_path / "tokens.bin"), "--window", "96", "--evaluator",
               str(tmp_path / "model"), "--contexts", "16,48", "--json",
               str(tmp_path / "out.json")]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "key tokens" in result.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert [loss["above"] for loss in written["key_tokens"]["losses"]] == [16, 16, 48]
