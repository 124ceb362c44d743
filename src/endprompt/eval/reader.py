"""Answers of a model on this machine; neighbouring prompts of a suite are answered together."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence

from endprompt.eval import batch
from endprompt.eval.engine import Engine
from endprompt.eval.results import Question

LIKE = 7 / 8
"""Of the longest prompt of a batch: the others are at least so long."""
SHARED = 256
"""A common beginning of at least so many tokens is read once for all prompts of a batch."""


class Reader:
    """Answers prompts with an engine; the common beginning of two successive ones is read once.

    known  token ids of prompts, added to and kept for another reader with the same tokenizer;
           None: kept until a prompt is answered
    """

    def __init__(self, engine: Engine, *, known: dict[str, list[int]] | None = None) -> None:
        self.engine = engine
        self._keeps = known is not None
        self._known = {} if known is None else known
        self._context = engine.context()
        self._read: list[int] = []
        self._lock = threading.Lock()

    def batches(self, questions: Iterable[Question]) -> Iterator[list[Question]]:
        """Questions in their order, those together that one batch can hold.

        Prompts of a batch are of like length, and its cache fits in memory.
        """
        waiting: list[Question] = []
        lengths: list[int] = []
        for question in questions:
            if question.prompt not in self._known:
                self._known[question.prompt] = self.engine.prompt_ids(question.prompt)
            length = len(self._known[question.prompt]) + question.max_new_tokens
            longest, shortest = max([*lengths, length]), min([*lengths, length])
            fits = len(waiting) < self.engine.rows_at_once(longest)
            if waiting and not (fits and shortest >= LIKE * longest):
                yield waiting
                waiting, lengths = [], []
            waiting.append(question)
            lengths.append(length)
        if waiting:
            yield waiting

    def answer(self, prompt: str, max_new_tokens: int, stop: Sequence[str] = ()) -> str:
        """The greedy continuation, cut before the first text of `stop`."""
        ids = self._ids(prompt)
        with self._lock:
            # The last token is read again: its logits are needed.
            self._read_to(ids, _alike(ids[:-1], self._read))
            written = self._context.complete([], max_new_tokens, stop=stop)
        return self._text(written, stop)

    def answer_all(self, questions: Sequence[Question]) -> list[str]:
        """`answer` for each question of a batch, decoded together."""
        if len(questions) == 1:
            (question,) = questions
            return [self.answer(question.prompt, question.max_new_tokens, question.stop)]
        prompts = [self._ids(question.prompt) for question in questions]
        shared = min(_alike(prompts[0], ids[:-1]) for ids in prompts)
        with self._lock:
            if shared >= SHARED:
                begun = prompts[0][:shared]
                self._read_to(begun, _alike(begun, self._read))
            else:
                shared = 0
            written = batch.complete(
                self.engine,
                [
                    batch.Request(ids[shared:], question.max_new_tokens, question.stop)
                    for ids, question in zip(prompts, questions, strict=True)
                ],
                after=self._context if shared else None,
            )
        return [
            self._text(ids, question.stop) for ids, question in zip(written, questions, strict=True)
        ]

    def _ids(self, prompt: str) -> list[int]:
        ids = self._known.get(prompt) or self.engine.prompt_ids(prompt)
        if not self._keeps:
            self._known.pop(prompt, None)
        return ids

    def _read_to(self, ids: list[int], same: int) -> None:
        """Have `ids` in the context, of which it may begin with `same` already."""
        if not self._context.rewind(same):
            self._context, same = self.engine.context(), 0
        self._context.extend(ids[same:])
        self._read = ids

    def _text(self, ids: Sequence[int], stop: Sequence[str]) -> str:
        text = self.engine.decode_answer(ids)
        for mark in stop:
            text = text.split(mark)[0]
        return text


def _alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    pairs = zip(ids, others, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
