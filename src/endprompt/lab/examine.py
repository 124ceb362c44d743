"""What a small model knows: answers by length and kind of question, and loss by quarter.

All arms of a seed are asked the same questions and read the same texts, so that they are paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from endprompt.lab.language import (
    Examination,
    Ints,
    Kind,
    Question,
    document,
    examination,
)

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Questions:
    """How much is asked: examinations of each kind at each length, texts for the loss."""

    kinds: tuple[Kind, ...]
    lengths: tuple[int, ...]
    examinations: int = 16
    loss_lengths: tuple[int, ...] = ()
    loss_tokens: int = 16384
    """Tokens of text that the loss is measured on, at each length."""


@lru_cache(maxsize=4)
def _examinations(asked: Questions, seed: int) -> dict[int, dict[Kind, list[Examination]]]:
    return {
        length: {
            kind: [
                examination(kind, length, (seed, n), asked.kinds) for n in range(asked.examinations)
            ]
            for kind in asked.kinds
        }
        for length in asked.lengths
    }


@lru_cache(maxsize=4)
def _texts(asked: Questions, seed: int) -> dict[int, list[Ints]]:
    return {
        length: [
            document(length, (5, seed, n), asked.kinds)
            for n in range(max(1, asked.loss_tokens // length))
        ]
        for length in asked.loss_lengths
    }


def examine(model: Any, asked: Questions, seed: int) -> dict[str, Any]:
    """Answers and losses of a model, as plain values.

    `answers`: length, then kind, to a list of [depth, 1 if right] in the order of the questions.
    `loss`: length to one list a text of the loss of its quarters, nats per token.
    """
    import torch

    was_training = model.training
    model.eval()
    answers: dict[str, dict[str, list[list[float]]]] = {}
    losses: dict[str, list[list[float]]] = {}
    with torch.inference_mode():
        for length, kinds in _examinations(asked, seed).items():
            answers[str(length)] = {
                kind: [
                    [round(question.depth, 4), int(right(question, best_T))]
                    for posed, best_T in zip(some, _best(model, some), strict=True)
                    for question in posed.questions
                ]
                for kind, some in kinds.items()
            }
        for length, texts in _texts(asked, seed).items():
            losses[str(length)] = [
                [round(float(part.mean()), 5) for part in np.array_split(losses_T, 4)]
                for losses_T in _token_losses(model, texts)
            ]
    model.train(was_training)
    return {"answers": answers, "loss": losses}


def right(question: Question, best_T: Ints) -> bool:
    """Whether the most probable token before each place of the answer is the answer's.

    Several values may be named in any order, none of them twice.
    """
    said = [int(best_T[question.start - 1 + n]) for n in range(len(question.answer))]
    if question.any_order:
        return set(said) == set(question.answer)
    return tuple(said) == question.answer


def _logits(model: Any, texts: list[Ints]) -> Any:
    """Batches of texts of one length, and their logits float[B, T, V]."""
    import torch

    at_once = max(1, TOKENS_AT_ONCE // len(texts[0]))
    for start in range(0, len(texts), at_once):
        ids_BT = torch.from_numpy(np.stack(texts[start : start + at_once]))
        yield ids_BT, model(input_ids=ids_BT, use_cache=False).logits


def _best(model: Any, some: list[Examination]) -> list[Ints]:
    return [
        best_T
        for _, logits_BTV in _logits(model, [posed.tokens_T for posed in some])
        for best_T in logits_BTV.argmax(-1).numpy()
    ]


def _token_losses(model: Any, texts: list[Ints]) -> list[Any]:
    from torch.nn.functional import cross_entropy

    return [
        losses_T
        for ids_BT, logits_BTV in _logits(model, texts)
        for losses_T in cross_entropy(
            logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none"
        ).numpy()
    ]
