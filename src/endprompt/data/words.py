"""Tokens as words: letters and digits without case, spaces and punctuation, however they were cut.

The letters of a word are coefficients of a polynomial modulo 2**64, so that its number follows
from those of its tokens by differences of one running sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_SLICE_TOKENS = 2**14
_FIRST_WITHOUT_SPACES = "\u2e80"
"""From here on scripts put no spaces between words: each token is taken for one."""


class Words:
    """Numbers that equal words share.

    tokenizer  a Transformers tokenizer; None: each id is a word
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokens = None if tokenizer is None else _Tokens.of(tokenizer)
        self._powers = np.ones((2, 1), np.uint64)

    def __call__(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Words of int[tokens]: their numbers, uint64[words], and first tokens, int64[words].

        What has no letter or digit is left out, unless that is all there is.
        """
        if self._tokens is not None:
            slices = [
                (start, *self._in_slice(self._tokens, np.asarray(ids[start:][:_SLICE_TOKENS])))
                for start in range(0, len(ids), _SLICE_TOKENS)
            ]
            numbers = np.concatenate([np.empty(0, np.uint64), *(part for _, part, _ in slices)])
            if len(numbers):
                return numbers, np.concatenate([start + first for start, _, first in slices])
        return ids.astype(np.uint64) + np.uint64(1), np.arange(len(ids))

    def _in_slice(self, tokens: _Tokens, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begins = np.ones(len(ids), bool)
        begins[1:] = tokens.begins_V[ids[1:]] | tokens.ends_V[ids[:-1]]
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(ids)) - 1
        letters = np.cumsum(tokens.letters_V[ids])
        self._reach(int(letters[-1]) + 1)
        powers, inverses = self._powers
        sums = np.cumsum(tokens.values_V[ids] * inverses[letters])
        before = np.where(first > 0, sums[first - 1], np.uint64(0))
        numbers = (sums[last] - before) * powers[letters[last]]
        spelled = letters[last] > np.where(first > 0, letters[first - 1], 0)
        return numbers[spelled], first[spelled]

    def _reach(self, count: int) -> None:
        """Let there be powers of the base and of its inverse, `count` of each or more."""
        if self._powers.shape[1] < count:
            factors = np.ones((2, 2 * count), np.uint64)
            factors[:, 1:] = [[_BASE], [_INVERSE]]
            self._powers = np.cumprod(factors, axis=1)


@dataclass(frozen=True)
class _Tokens:
    """What each token adds to a word.

    values_V   uint64[V], the polynomial of its letters and digits
    letters_V  int64[V], how many they are
    begins_V   bool[V], it begins a word
    ends_V     bool[V], the next token begins one
    """

    values_V: np.ndarray
    letters_V: np.ndarray
    begins_V: np.ndarray
    ends_V: np.ndarray

    @classmethod
    def of(cls, tokenizer: Any) -> _Tokens:
        """From a tokenizer's vocabulary."""
        texts = _texts(tokenizer)
        values, letters = np.zeros(len(texts), np.uint64), np.zeros(len(texts), np.int64)
        begins, ends = np.ones(len(texts), bool), np.ones(len(texts), bool)
        for number, text in enumerate(texts):
            spelled = "".join(filter(str.isalnum, text.casefold()))
            if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character: itself
                spelled = f"\0{number}"
            value = 0
            for character in spelled:
                value = (value * int(_BASE) + ord(character) + 1) % 2**64
            values[number], letters[number] = value, len(spelled)
            alone = any(character >= _FIRST_WITHOUT_SPACES for character in text)
            if spelled and not alone:
                begins[number], ends[number] = not text[0].isalnum(), not text[-1].isalnum()
        return cls(values, letters, begins, ends)


def _texts(tokenizer: Any) -> list[str]:
    """The text of each token; one that begins a word by SentencePiece's mark has its space."""
    ids = range(len(tokenizer))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.decode([number]) for number in ids]
    texts = backend.decode_batch([[number] for number in ids], skip_special_tokens=False)
    marked = ((backend.id_to_token(number) or "").startswith("\u2581") for number in ids)
    return [
        " " + text.lstrip(" ") if mark else text for text, mark in zip(texts, marked, strict=True)
    ]
