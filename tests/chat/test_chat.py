"""A conversation reads each token once, answers as a model without a cache would, and knows
its window."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from endprompt.chat import Conversation
from endprompt.cli.app import run
from endprompt.errors import EvaluationError
from endprompt.models import checkpoint as models
from tiny_checkpoint import WINDOW, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("chat") / "m", initializer_range=0.4)


def talk(folder: Path, text: str = "") -> Conversation:
    path = str(folder)
    network = models.load(path, models.load_config(path))
    return Conversation(network, models.load_tokenizer(path), text)


def plain(talk: Conversation, ids: list[int], count: int) -> list[int]:
    """Greedy tokens, everything read again for each."""
    out = list(ids)
    for _ in range(count):
        out.append(int(talk.model(torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
        if out[-1] == 256:
            break
    return out


def test_the_second_answer_is_that_of_a_model_without_a_cache(folder: Path) -> None:
    asked = talk(folder, "old stone mills")
    asked.ask("where", max_new_tokens=6)
    assert asked.messages[0]["content"] == "old stone mills\n\nwhere"
    read: list[int] = []
    asked.model.model.embed_tokens.register_forward_hook(
        lambda _, given, __: read.append(given[0].shape[1])
    )
    before = list(asked._read)
    answer = asked.ask("when", max_new_tokens=6)
    ids = asked._encode(asked.messages[:-1])
    same = next((n for n, pair in enumerate(zip(before, ids, strict=False))
                 if pair[0] != pair[1]), len(before))  # fmt: skip
    assert read[0] == len(ids) - same, "what was read before is not read again"
    asked.model.model.embed_tokens._forward_hooks.clear()
    expected = plain(asked, ids, 6)
    decoded = asked.tokenizer.decode(expected[len(ids) :], skip_special_tokens=True)
    assert answer == decoded
    assert asked.used == len(expected) - 1


def test_a_prompt_past_the_window_is_refused_and_changes_nothing(folder: Path) -> None:
    asked = talk(folder, "x" * WINDOW)
    with pytest.raises(EvaluationError, match=r"exceed the window of 128: give a shorter text"):
        asked.ask("where", max_new_tokens=4)
    assert asked.messages == []
    assert asked.used == 0


def test_questions_from_standard_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("the river ran")
    monkeypatch.setattr("sys.stdin", io.StringIO("where\nwhen\n\nnever asked\n"))
    assert run(["chat", str(folder), "--file", str(book), "--tokens", "4"]) == 0
    said = capsys.readouterr()
    assert said.err.count("of 128 tokens") == said.err.count("[reading ") == 2
    book.write_bytes(b"\xff\xfe\x00")
    assert run(["chat", str(folder), "--file", str(book)]) == 1
    assert "is no UTF-8 text" in capsys.readouterr().err


def test_an_answer_that_was_stopped_or_failed_leaves_a_conversation_that_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, alone = talk(folder, "old stone mills"), talk(folder, "old stone mills")
    asked.ask("where", max_new_tokens=6, stop=lambda: True)
    alone.ask("where", max_new_tokens=1)
    assert asked.messages == alone.messages, "one token, then the stop"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle of a layer")

    hook = asked.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        asked.ask("when", max_new_tokens=6)
    hook.remove()
    assert asked.ask("when", max_new_tokens=6) == alone.ask("when", max_new_tokens=6)
    assert asked.used == alone.used
    assert [question for question, _ in asked.turns] == ["where", "when"]
