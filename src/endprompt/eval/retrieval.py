"""Retrieval answered in words: needles in real text, a passkey in noise, a value in JSON.

Each prompt is sized in tokens, the room for its answer included. Unlike `needle_grid`, which
scores likelihoods, these are prompts that any engine or server can answer.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from endprompt.errors import EvaluationError
from endprompt.eval.needle import keys_and_answers, longest_question, plant, question_and_answer
from endprompt.eval.perplexity import Document, checked_lengths, with_start
from endprompt.eval.results import Question

if TYPE_CHECKING:
    from endprompt.eval.engine import Coder

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
"""Mohtashami and Jaggi (2023), as in LongLoRA's passkey test."""


def needles(
    coder: Coder,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    seed: int,
) -> Iterator[Question]:
    """All needles of a document and length, one question each, from the same haystack."""
    for number, document in enumerate(documents):
        for length in checked_lengths(lengths, 1):
            ids_T = with_start(coder, document, length, number)
            pairs = keys_and_answers(len(depths), seed, number)
            room = longest_question(coder, pairs)
            places = [round(depth * (length - room)) for depth in depths]
            stack = plant(coder, ids_T, length - room, places, pairs)
            text = coder.decode(stack.ids_T[len(coder.start_ids) :].tolist())
            for depth, needle in zip(depths, stack.needles, strict=True):
                question, answer = question_and_answer(coder, needle.key, needle.answer)
                yield Question(
                    id=f"needle/{length}/{number}/{depth:.3f}",
                    task="needle",
                    length=length,
                    prompt=text + coder.decode(question).rstrip(" "),
                    max_new_tokens=len(answer) + 4,
                    references=(needle.answer,),
                )


def passkeys(
    coder: Coder, *, lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> Iterator[Question]:
    """A five-digit key hidden in repeated sentences, at each length and depth."""
    room = 12
    for length in checked_lengths(lengths, 1):
        for depth in depths:
            for sample in range(samples):
                rng = np.random.default_rng([seed, length, round(1000 * depth), sample])
                key = str(rng.integers(10_000, 100_000))

                def build(size: int, depth: float = depth, key: str = key) -> str:
                    before = round(depth * size)
                    return (
                        "There is an important info hidden inside a lot of irrelevant text. "
                        "Find it and memorize it. I will quiz you about the important "
                        f"information there.\n{NOISE * before}The pass key is {key}. Remember it. "
                        f"{key} is the pass key. {NOISE * (size - before)}\n"
                        "What is the pass key? The pass key is"
                    )

                yield Question(
                    id=f"passkey/{length}/{depth:.3f}/{sample}",
                    task="passkey",
                    length=length,
                    prompt=fitted(coder, build, length - room),
                    max_new_tokens=room,
                    references=(key,),
                )


def values(
    coder: Coder, *, lengths: Sequence[int], depths: Sequence[float], samples: int, seed: int
) -> Iterator[Question]:
    """Key-value retrieval (Liu et al., 2024): one value of a JSON object of UUIDs."""
    room = 64
    for length in checked_lengths(lengths, 1):
        for depth in depths:
            for sample in range(samples):
                seeds = [seed, length, round(1000 * depth), sample]
                # Two UUIDs take more than 20 tokens in any tokenizer.
                raw = np.random.default_rng(seeds).bytes(32 * max(length // 20, 16))
                ids = [str(uuid.UUID(bytes=raw[at : at + 16])) for at in range(0, len(raw), 16)]
                build = partial(_json_prompt, ids, depth)
                prompt = fitted(coder, build, length - room)
                key = prompt.rsplit('Key: "', 1)[1].split('"')[0]
                yield Question(
                    id=f"key-value/{length}/{depth:.3f}/{sample}",
                    task="key-value",
                    length=length,
                    prompt=prompt,
                    max_new_tokens=room,
                    stop=("\n",),
                    references=(ids[ids.index(key) + len(ids) // 2],),
                )


def _json_prompt(ids: list[str], depth: float, size: int) -> str:
    """size + 1 pairs, keys from the first half of the ids and values from the second."""
    count = size + 1
    pairs = dict(zip(ids[:count], ids[len(ids) // 2 :], strict=False))
    key = ids[min(int(depth * count), count - 1)]
    return (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{json.dumps(pairs, indent=0)}\n\nKey: "{key}"\nCorresponding value: "'
    )


def hit(question: Question, prediction: str) -> dict[str, float]:
    """Whether the answer appears in the prediction."""
    return {"hit": float(question.references[0] in prediction)}


def fitted(coder: Coder, build: Callable[[int], str], limit: int) -> str:
    """The longest text of `build(size)` within a number of tokens, start tokens included.

    Raises EvaluationError when not even size 0 fits.
    """

    def tokens(size: int) -> int:
        return len(coder.prompt_ids(build(size)))

    return build(largest(tokens, limit))


def largest(tokens: Callable[[int], int], limit: int) -> int:
    """The largest size whose tokens fit, where they grow with the size.

    Raises EvaluationError when not even size 0 fits.
    """
    least = tokens(0)
    if least > limit:
        raise EvaluationError(
            f"{limit} tokens cannot hold a prompt of {least}: give a longer length"
        )
    step = max((tokens(8) - least) / 8, 1.0)
    low, high = 0, max(int(1.5 * (limit - least) / step), 1)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
